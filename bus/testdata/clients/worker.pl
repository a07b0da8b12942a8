#!/usr/bin/env perl
# worker.pl [SOCKET NAME]: offer functions on an fbus bus.
#
# NAME upper-cases its input (ASCII), at whatever size; called with arguments it
# prints those, one a line. Without NAME the node is that of FBUS_NODE, and the
# functions are those that fbus conformance worker calls: echo (its input, or its
# arguments one a line), args (its arguments as JSON), sleep (for as many seconds
# as its argument says) and exit (with the status that its argument says). The
# sections named below are those of PROTOCOL.md. Needs Data::MessagePack
# (libdata-messagepack-perl).
#
# Nothing here takes long, so one loop does all: whatever happens, happens because
# a frame came, a signal, or the end of a sleep.
use strict;
use warnings;
use List::Util qw(first min);
use Socket qw(PF_UNIX SOCK_STREAM SOL_SOCKET SO_PEERCRED MSG_NOSIGNAL pack_sockaddr_un);
use Data::MessagePack 1.00;    # older ones know no bin
use JSON::PP;
use Sys::Hostname;
use Time::HiRes qw(time);
use constant { T_HELLO => 1, T_ERROR => 2, T_OFFER => 3, T_OFFERED => 4, T_CALL => 5,
    T_DATA => 6, T_EOF => 7, T_GRANT => 8, T_CANCEL => 9, T_END => 10 };
use constant { MAX_FRAME => 1 << 20, MAX_FIRST => 4096, MAX_CREDIT => 4 << 20, CHUNK => 65536 };    # section 8; CHUNK is ours
use constant WINDOW => 256 << 10;    # the most input that we hold: granted, or not yet passed on

# The elements of the types that we send, and those that others must have: u for
# uint, s for str or bin, those behind ? need not be there.
my %SENT = (T_HELLO, 'uusss', T_ERROR, 'ss', T_OFFER, 'usuuss', T_DATA, 'uus', T_GRANT, 'uuu', T_END, 'uuuss');
my %TAKEN = (T_HELLO, 'uusss', T_ERROR, 'ss', T_OFFERED, 'uss', T_CALL, 'usussu?uuuusuu',
    T_DATA, 'uus', T_EOF, 'u', T_GRANT, 'uuu', T_CANCEL, 'u');
my $mp = Data::MessagePack->new;    # strings go as bin, which a receiver must take for str (section 2)
my $instance = join '-', $$, time, int rand 1 << 31;
my $sock;

sub complain {
    my $text = join ': ', 'worker', map { bytes($_) } @_;
    utf8::decode($text);
    $text =~ s/[\p{C}\p{Zl}\p{Zp}]/?/g;    # section 5.5
    utf8::encode($text);
    print STDERR "$text\n";
}

sub say_and_exit { my $status = shift; complain(@_); exit $status }

# The connection has ended, and another may be made (section 4.2).
sub lost { die { lost => $_[0] } }

# Section 7: what may be over in a while, and what will not.
sub refused {
    my ($code, $message) = @_;
    lost($code) if $code =~ /^(busy|draining|internal|list_lost)$/;
    say_and_exit($code eq 'denied' ? 77 : 1, $code, $message);
}

# Section 2: a length and one msgpack array. SENT says what is a number: Perl and
# with it the packer forget that once it was used as a string. It may block, never
# for good: a node reads whatever it waits for itself.
sub send_frame {
    my ($type, @e) = @_;
    my @shape = split //, $SENT{$type};
    my $frame = pack 'N/a*', $mp->pack([$type + 0, map { $shape[$_] eq 'u' ? $e[$_] + 0 : $e[$_] } 0 .. $#e]);
    while (length $frame) {
        my $n = send $sock, $frame, MSG_NOSIGNAL;
        next if !defined $n && $!{EINTR};
        return unless $n;           # the node's last words, perhaps an ERROR, are still to be read
        substr $frame, 0, $n, '';
    }
}

sub broken { send_frame(T_ERROR, 'protocol', $_[0]); say_and_exit(1, 'protocol', $_[0]) }    # section 3.3

sub read_exactly {
    my ($size) = @_;
    my $data = '';
    while (length $data < $size) {
        my $n = sysread $sock, $data, $size - length $data, length $data;
        next if !defined $n && $!{EINTR};
        lost(defined $n ? 'the node closed the connection' : "$!") unless $n;
    }
    return $data;
}

# The packer makes characters of a str that is UTF-8, and leaves another as it is.
sub bytes { my ($s) = @_; utf8::encode($s) if utf8::is_utf8($s); return $s }

# The next frame, with what must be there (TAKEN). One of an unknown type comes as
# it is; it is from a newer minor version, and must be skipped.
sub receive {
    my ($limit) = @_;
    my $size = unpack 'N', read_exactly(4);
    broken("frame of $size bytes exceeds the limit of $limit") if $size > $limit;
    my $body = read_exactly($size);
    my $frame = eval { $mp->unpack($body) };
    broken('not a msgpack array') unless ref $frame eq 'ARRAY';
    my $type = $frame->[0];
    broken('a frame without a type') unless defined $type && $type =~ /^\d+$/;
    broken("unexpected frame of type $type") if $type >= 1 && $type <= 10 && !$TAKEN{$type};
    return @$frame unless $TAKEN{$type};
    my ($must, $may) = split /\?/, $TAKEN{$type};
    my @shape = split //, $must . ($may // '');
    broken("only $#$frame elements in a frame of type $type") if $#$frame < length $must;
    for my $i (1 .. min($#$frame, scalar @shape)) {
        my $v = $frame->[$i];
        broken("element $i of a frame of type $type") if !defined $v || ref $v || $shape[$i - 1] eq 'u' && $v !~ /^\d+$/;
        $frame->[$i] = bytes($v);
    }
    return @$frame;
}

sub connect_to {
    my ($path) = @_;
    socket $sock, PF_UNIX, SOCK_STREAM, 0 or say_and_exit(1, $!);
    connect $sock, pack_sockaddr_un($path) or lost("$path: $!");
    my (undef, $uid) = unpack 'iII', getsockopt $sock, SOL_SOCKET, SO_PEERCRED;
    say_and_exit(1, "$path belongs to user $uid") if $uid && $uid != $>;       # section 2
    send_frame(T_HELLO, 1, 0, '', $instance, hostname);                        # section 3.1
    local $SIG{ALRM} = sub { say_and_exit(1, "$path does not answer") };
    alarm 10;
    my ($type, @e) = receive(MAX_FIRST);
    alarm 0;
    refused(@e[0, 1]) if $type == T_ERROR;
    broken('the first frame must be HELLO') if $type != T_HELLO;
    return if $e[0] == 1;
    send_frame(T_ERROR, 'version', 'this worker speaks version 1');            # section 3.2
    say_and_exit(1, 'version', "the node speaks version $e[0]");
}

# Section 6. Data::MessagePack does not tell a str of ASCII from a bin, which is a
# JSON document, so the arguments are read here, each to its JSON and its bytes.
sub value {
    my ($in, $depth) = @_;
    my $take = sub { my $n = shift; die "they end early\n" if $n > length $$in; substr $$in, 0, $n, '' };
    my $number = sub { my ($format, $n) = @_; unpack $format, $take->($n) };
    my $plain = sub { my $text = shift; { json => $text, bytes => $text } };
    my $str = sub { my $bytes = $take->($_[0]); { json => quoted($bytes), bytes => $bytes, string => 1 } };
    my $bin = sub { my $bytes = $take->($_[0]); { json => document($bytes), bytes => $bytes } };
    die "they are nested too deep\n" if $depth > 16;
    my $list = sub { my @v = map { value($in, $depth + 1) } 1 .. $_[0]; { json => '[' . join(',', map { $_->{json} } @v) . ']', list => \@v } };
    my $map = sub {
        my @v = map { [value($in, $depth + 1), value($in, $depth + 1)] } 1 .. $_[0];
        die "a key is no string\n" if grep { !$_->[0]{string} } @v;
        { json => '{' . join(',', map { "$_->[0]{json}:$_->[1]{json}" } @v) . '}', map => 1 }
    };
    my $t = $number->('C', 1);
    return $plain->($t) if $t < 0x80;
    return $map->($t & 15) if $t < 0x90;
    return $list->($t & 15) if $t < 0xa0;
    return $str->($t & 31) if $t < 0xc0;
    return $plain->($t - 256) if $t >= 0xe0;
    my $how = {
        0xc0 => sub { $plain->('null') }, 0xc2 => sub { $plain->('false') }, 0xc3 => sub { $plain->('true') },
        0xc4 => sub { $bin->($number->('C', 1)) }, 0xc5 => sub { $bin->($number->('n', 2)) }, 0xc6 => sub { $bin->($number->('N', 4)) },
        0xca => sub { $plain->($number->('f>', 4)) }, 0xcb => sub { $plain->($number->('d>', 8)) },
        0xcc => sub { $plain->($number->('C', 1)) }, 0xcd => sub { $plain->($number->('n', 2)) },
        0xce => sub { $plain->($number->('N', 4)) }, 0xcf => sub { $plain->($number->('Q>', 8)) },
        0xd0 => sub { $plain->($number->('c', 1)) }, 0xd1 => sub { $plain->($number->('s>', 2)) },
        0xd2 => sub { $plain->($number->('l>', 4)) }, 0xd3 => sub { $plain->($number->('q>', 8)) },
        0xd9 => sub { $str->($number->('C', 1)) }, 0xda => sub { $str->($number->('n', 2)) }, 0xdb => sub { $str->($number->('N', 4)) },
        0xdc => sub { $list->($number->('n', 2)) }, 0xdd => sub { $list->($number->('N', 4)) },
        0xde => sub { $map->($number->('n', 2)) }, 0xdf => sub { $map->($number->('N', 4)) },
    }->{$t} or die "they are not what arguments are\n";
    return $how->();
}

sub quoted { my ($bytes) = @_; $bytes =~ s/(["\\])/\\$1/g; $bytes =~ s/([\x00-\x1f])/sprintf '\\u%04x', ord $1/ge; return "\"$bytes\"" }

# A JSON document is passed on as it is.
sub document {
    my ($text) = @_;
    eval { JSON::PP->new->allow_nonref->decode($text) } // $text =~ /^\s*null\s*$/ or die "they are not JSON\n";
    return $text;
}

sub arguments {
    my ($kind, $args) = @_;
    return { json => document($args) } if $kind == 3;
    my $all = value(\$args, 0);
    die "they are of another kind\n" if length $args || $kind == 1 && !$all->{list} || $kind == 2 && !$all->{map};
    return $all;
}

sub words {
    my $all = arguments(@_);
    die "they must be a list\n" unless $all->{list};
    return map { $_->{bytes} // $_->{json} } @{ $all->{list} };
}

sub one { my @words = words(@_); die "one is due\n" if @words != 1; return $words[0] }

# A function that changes its input, or its arguments, one a line.
sub lines {
    my ($change) = @_;
    return sub {
        my ($kind) = @_;
        return $kind ? { pending => join('', map { $change->($_) . "\n" } words(@_)) } : { change => $change };
    };
}

sub upper { my ($bytes) = @_; $bytes =~ tr/a-z/A-Z/; return $bytes }

# What each function is, for people, and what begins a call of it. The call is the
# acceptor's side (section 5.7): its output, as far as it is known, waits in pending
# until there is credit to send it; granted is credit for input that the node has
# not used yet.
my %CONFORMANCE = (
    echo  => ['its input, or its arguments one a line', lines(sub { $_[0] })],
    args  => ['its arguments as JSON', sub { { pending => ($_[0] ? arguments(@_)->{json} : '[]') . "\n" } }],
    sleep => ['sleeps for SECONDS', sub { my $s = one(@_); die "no number\n" if $s !~ /^\d+(\.\d+)?$/; { until => time + $s } }],
    exit  => ['exits with STATUS', sub { my $s = one(@_); die "no status\n" if $s !~ /^\d{1,3}$/ || $s > 255; { status => $s } }],
);
my %functions;    # by name
my %calls;        # by name: the one call of each function, for each has one slot
my $last;         # id of the latest CALL
my $draining = 0;
my $answers;      # to our OFFERs that are to come

sub end_call {
    my ($call, @how) = @_;
    send_frame(T_END, $call->{id}, @how);    # section 5.5
    delete $calls{ $call->{name} };
}

# Sends what there is credit for, makes room for input, and ends a call of which
# all is done.
sub pump {
    my ($call) = @_;
    while (length $call->{pending} && $call->{credit} > 0) {
        my $data = substr $call->{pending}, 0, min($call->{credit}, CHUNK), '';
        send_frame(T_DATA, $call->{id}, 1, $data);
        $call->{credit} -= length $data;
    }
    my $room = WINDOW - $call->{granted} - length $call->{pending};
    if (!$call->{eof} && $room >= WINDOW / 4) {    # section 5.3; a few large GRANTs, not many small ones
        send_frame(T_GRANT, $call->{id}, 0, $room);
        $call->{granted} += $room;
    }
    end_call($call, 0, $call->{status}, 'exit', '') if $call->{eof} && !length $call->{pending} && time >= $call->{until};
}

# Section 5.1.
sub accept_call {
    my ($id, $name, $kind, $args, $input, $flags, @more) = @_;
    broken("call id $id after $last") if $id <= $last;
    broken("kind $kind") if $kind > 3;
    $last = $id;
    if ($draining || $calls{$name} || !$functions{$name}) {    # more than its slot; the one that runs is not touched
        send_frame(T_END, $id, 2, 75, $draining ? 'draining' : 'busy', 'one call at a time');
        return;
    }
    my $call = eval { $functions{$name}[1]->($kind, $args) };    # an input beside the arguments gets no credit and so stays away
    if (!$call) {
        chomp(my $why = $@);
        send_frame(T_END, $id, 2, 65, 'bad_input', "arguments: $why");
        return;
    }
    $calls{$name} = {
        status => 0, until => 0, %$call, id => $id, name => $name, granted => 0, credit => $more[5] // 262144,
        pending => $call->{change} ? $call->{change}->($input) : $call->{pending} // '',
        eof => $call->{change} ? $flags & 1 : 1,
    };
}

my %HANDLE = (
    T_DATA, sub {
        my ($call, $stream, $data) = @_;
        $call->{granted} -= length $data;
        broken('input after its end or beyond credit') if $stream != 0 || $call->{eof} || $call->{granted} < 0;
        $call->{pending} .= $call->{change}->($data);
    },
    T_EOF, sub { my ($call) = @_; broken('input ended twice') if $call->{eof}; $call->{eof} = 1 },
    T_GRANT, sub {
        my ($call, $stream, $more) = @_;
        broken('input is granted by the acceptor') if $stream == 0;
        $call->{credit} += $more if $stream == 1;
        broken('too much credit') if $call->{credit} > MAX_CREDIT;
    },
    T_CANCEL, sub { end_call($_[0], 2, 143, 'cancelled', 'cancelled') },    # section 5.4: nothing runs on
);

sub handle {
    my ($type, @e) = @_;
    if ($type == T_ERROR) {
        refused(@e[0, 1]);
    } elsif ($type == T_OFFERED) {    # section 4
        refused(@e[1, 2]) if length $e[1];
        print STDERR join(' ', 'offering', sort keys %functions), "\n" if --$answers == 0 && !$draining;
    } elsif ($type == T_CALL) {
        accept_call(@e);
    } elsif (my $handle = $HANDLE{$type}) {
        my $id = shift @e;
        broken("call $id was never opened") if $id < 1 || $id > $last;
        my $call = first { $_->{id} == $id } values %calls;
        $handle->($call, @e) if $call;    # section 5.6: else it has crossed our END
    } elsif ($type == T_HELLO) {
        broken('a second HELLO');
    }    # else, section 2: skipped
}

# Serves calls until the node is lost, or after TERM until they have ended.
sub serve {
    my ($wake) = @_;
    %calls = ();
    ($last, $answers) = (0, scalar keys %functions);
    my $seq = 0;
    send_frame(T_OFFER, ++$seq, $_, 1, 1, $functions{$_}[0], 'a list of strings') for sort keys %functions;
    while (1) {
        pump($_) for values %calls;
        exit 0 if $draining && !%calls && $answers == 0;
        my $set = '';
        vec($set, fileno $_, 1) = 1 for $sock, $wake;
        my @waits = grep { $_ > 0 } map { $_->{until} - time } values %calls;
        my $n = select my $ready = $set, undef, undef, @waits ? min(@waits) : undef;
        next if $n <= 0;                  # the end of a sleep, or a signal, which has written to the pipe
        if (vec $ready, fileno $wake, 1) {    # section 4.2: no new calls, and the others finish
            sysread $wake, my $drop, 1;
            $draining = 1;
            $answers += keys %functions;
            send_frame(T_OFFER, 99, $_, 0, 0, '', '') for sort keys %functions;
        }
        handle(receive(MAX_FRAME)) if vec $ready, fileno $sock, 1;
    }
}

my ($path, $name) = @ARGV ? @ARGV : $ENV{FBUS_NODE};
say_and_exit(64, 'usage: worker.pl SOCKET NAME') if @ARGV != 2 && (@ARGV || !defined $path);
%functions = defined $name ? ($name => ['upper-cases its input or arguments', lines(\&upper)]) : %CONFORMANCE;
pipe my $wake, my $wake_in or say_and_exit(1, $!);    # the first TERM drains, the second kills
$SIG{TERM} = sub { $SIG{TERM} = 'DEFAULT'; syswrite $wake_in, 'x' };
my ($pause, $known) = (0.05, 0);
while (1) {
    eval { connect_to($path); ($pause, $known) = (0.05, 1); serve($wake); };
    die $@ unless ref $@;
    say_and_exit(1, $@->{lost}) if !$known || $draining;
    complain($@->{lost});
    close $sock;
    vec(my $set = '', fileno $wake, 1) = 1;
    exit 0 if select($set, undef, undef, $pause * (0.5 + rand 0.5)) > 0;
    $pause = min(2 * $pause, 5);
}
