#!/usr/bin/env perl
# worker.pl SOCKET NAME: offer a function on an fbus bus that upper-cases.
#
# Its input comes out upper-cased (ASCII), at whatever size; called with arguments
# it prints those, one a line. The sections named below are those of PROTOCOL.md.
# Needs Data::MessagePack (libdata-messagepack-perl).
#
# There is one file descriptor to wait for, so there is no loop but the one that
# reads frames: whatever happens, happens because a frame came.
use strict;
use warnings;
use List::Util qw(min);
use Socket qw(PF_UNIX SOCK_STREAM SOL_SOCKET SO_PEERCRED MSG_NOSIGNAL pack_sockaddr_un);
use Data::MessagePack 1.00;    # older ones know no bin
use Sys::Hostname;
use constant { T_HELLO => 1, T_ERROR => 2, T_OFFER => 3, T_OFFERED => 4, T_CALL => 5,
    T_DATA => 6, T_EOF => 7, T_GRANT => 8, T_CANCEL => 9, T_END => 10 };
use constant { MAX_FRAME => 1 << 20, MAX_FIRST => 4096, CHUNK => 65536 };    # section 8; CHUNK is ours
use constant WINDOW => 256 << 10;    # the most input that we hold: granted, or not yet passed on

# The elements of the types that we send, and those that others must have: u for
# uint, s for str or bin, those behind ? need not be there.
my %SENT = (T_HELLO, 'uusss', T_ERROR, 'ss', T_OFFER, 'usuuss', T_DATA, 'uus', T_GRANT, 'uuu', T_END, 'uuuss');
my %TAKEN = (T_HELLO, 'uusss', T_ERROR, 'ss', T_OFFERED, 'uss', T_CALL, 'usussu?uuuusuu',
    T_DATA, 'uus', T_EOF, 'u', T_GRANT, 'uuu', T_CANCEL, 'u');
my $mp = Data::MessagePack->new;    # strings go as bin, which a receiver must take for str (section 2)
my $sock;

sub say_and_exit { my $status = shift; print STDERR join(': ', 'worker', @_), "\n"; exit $status }

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
        say_and_exit(1, defined $n ? 'the node closed the connection' : $!) unless $n;
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
    connect $sock, pack_sockaddr_un($path) or say_and_exit(1, "$path: $!");
    my (undef, $uid) = unpack 'iII', getsockopt $sock, SOL_SOCKET, SO_PEERCRED;
    say_and_exit(1, "$path belongs to user $uid") if $uid && $uid != $>;       # section 2
    my $instance = join '-', $$, time, int rand 1 << 31;
    send_frame(T_HELLO, 1, 0, '', $instance, hostname);                        # section 3.1
    local $SIG{ALRM} = sub { say_and_exit(1, "$path does not answer") };
    alarm 10;
    my ($type, @e) = receive(MAX_FIRST);
    alarm 0;
    say_and_exit(1, @e[0, 1]) if $type == T_ERROR;
    broken('the first frame must be HELLO') if $type != T_HELLO;
    return if $e[0] == 1;
    send_frame(T_ERROR, 'version', 'this worker speaks version 1');            # section 3.2
    say_and_exit(1, 'version', "the node speaks version $e[0]");
}

# The acceptor's side of the one call that may be open (section 5.7): what came
# in, upper-cased, waits in pending until there is credit to send it; granted is
# credit for input that the node has not used yet.
my $call;
my $last = 0;    # id of the latest CALL

sub upper { my ($bytes) = @_; $bytes =~ tr/a-z/A-Z/; return $bytes }

sub end_call { my ($id, @how) = @_; send_frame(T_END, $id, @how); $call = undef }    # section 5.5

# Sends what there is credit for, makes room for input, and ends a call of which
# all is done.
sub pump {
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
    end_call($call->{id}, 0, 0, 'exit') if $call->{eof} && !length $call->{pending};
}

# Section 5.1.
sub accept_call {
    my ($id, undef, $kind, $args, $input, $flags, @more) = @_;
    broken("call id $id after $last") if $id <= $last;
    $last = $id;
    if ($call) {    # more than our one slot; the one that runs is not touched
        send_frame(T_END, $id, 2, 75, 'busy', 'one call at a time');
        return;
    }
    my ($pending, $eof) = (upper($input), $flags & 1);
    if ($kind != 0) {    # section 6; an input beside the arguments gets no credit and so stays away
        my $words = eval { $mp->unpack($args) };
        return end_call($id, 2, 65, 'bad_input', 'arguments must be a list of strings')
            if $kind != 1 || ref $words ne 'ARRAY' || grep { !defined || ref } @$words;
        ($pending, $eof) = (join('', map { upper(bytes($_)) . "\n" } @$words), 1);
    }
    $call = { id => $id, pending => $pending, eof => $eof, granted => 0, credit => $more[5] // 262144 };
}

my %HANDLE = (
    T_DATA, sub {
        my (undef, $stream, $data) = @_;
        $call->{granted} -= length $data;
        broken('input after its end or beyond credit') if $stream != 0 || $call->{eof} || $call->{granted} < 0;
        $call->{pending} .= upper($data);
    },
    T_EOF, sub { broken('input ended twice') if $call->{eof}; $call->{eof} = 1 },
    T_GRANT, sub { $call->{credit} += $_[2] if $_[1] == 1 },
    T_CANCEL, sub { end_call($call->{id}, 2, 143, 'cancelled', 'cancelled') },    # section 5.4: nothing runs on
);

sub serve {
    my ($name) = @_;
    while (1) {
        my ($type, @e) = receive(MAX_FRAME);
        if ($type == T_ERROR) {
            say_and_exit(1, @e[0, 1]);
        } elsif ($type == T_OFFERED) {    # section 4
            say_and_exit($e[1] eq 'denied' ? 77 : 1, @e[1, 2]) if length $e[1];
            print STDERR "offering $name\n";
        } elsif ($type == T_CALL) {
            accept_call(@e);
        } elsif (my $handle = $HANDLE{$type}) {
            broken("call $e[0] was never opened") if $e[0] > $last;
            $handle->(@e) if $call && $call->{id} == $e[0];    # section 5.6: else it has crossed our END
        } elsif ($type == T_HELLO) {
            broken('a second HELLO');
        }    # else, section 2: skipped
        pump() if $call;
    }
}

say_and_exit(64, 'usage: worker.pl SOCKET NAME') if @ARGV != 2;
connect_to($ARGV[0]);
send_frame(T_OFFER, 1, $ARGV[1], 1, 1, 'upper-cases its input or arguments', 'a list of strings');
serve($ARGV[1]);
