#!/usr/bin/env perl
# caller.pl SOCKET FUNCTION [ARG...]: call a function on an fbus bus.
#
# With ARGs it sends them as a list; without, stdin is the input, read as the
# function takes it. Ends with the function's status. The sections named below
# are those of PROTOCOL.md. Needs Data::MessagePack (libdata-messagepack-perl).
use strict;
use warnings;
use List::Util qw(min);
use Socket qw(PF_UNIX SOCK_STREAM SOL_SOCKET SO_PEERCRED MSG_NOSIGNAL pack_sockaddr_un);
use Data::MessagePack 1.00;    # older ones know no bin
use constant { T_HELLO => 1, T_ERROR => 2, T_CALL => 5, T_DATA => 6, T_EOF => 7,
    T_GRANT => 8, T_CANCEL => 9, T_END => 10 };
use constant { MAX_FRAME => 1 << 20, MAX_FIRST => 4096, MAX_INPUT => 32768, CHUNK => 65536 };  # section 8; CHUNK is ours
use constant ID => 1;          # of our only call: ids rise from 1 on each connection (5.1, 5.6)

# The elements of the types that we send, and those that others must have: u for
# uint, s for str or bin, those behind ? need not be there.
my %SENT = (T_HELLO, 'uusss', T_ERROR, 'ss', T_CALL, 'usussu', T_DATA, 'uus', T_EOF, 'u', T_GRANT, 'uuu', T_CANCEL, 'u');
my %TAKEN = (T_HELLO, 'uusss', T_ERROR, 'ss', T_DATA, 'uus', T_GRANT, 'uuu', T_END, 'uuu?sss');
# Section 7: the codes of an ERROR in place of HELLO whose status is not 255.
my %STATUS = (internal => 70, map({ $_ => 75 } qw(busy draining list_lost)),
    map { $_ => 77 } qw(denied no_certificate revoked unlisted used expired not_yet_valid wrong_use bad_certificate));
my $mp = Data::MessagePack->new;    # strings go as bin, which a receiver must take for str (section 2)
my $sock;

sub say_and_exit {
    my $status = shift;
    my $text = join ': ', 'caller', map { bytes($_) } @_;
    utf8::decode($text);
    $text =~ s/[\p{C}\p{Zl}\p{Zp}]/?/g;    # section 5.5
    utf8::encode($text);
    print STDERR "$text\n";
    exit $status;
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

sub broken { send_frame(T_ERROR, 'protocol', $_[0]); say_and_exit(255, 'protocol', $_[0]) }    # section 3.3

sub read_exactly {
    my ($size) = @_;
    my $data = '';
    while (length $data < $size) {
        my $n = sysread $sock, $data, $size - length $data, length $data;
        next if !defined $n && $!{EINTR};
        say_and_exit(255, 'node_lost', defined $n ? 'the node closed the connection: a call may have run' : $!) unless $n;
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
    socket $sock, PF_UNIX, SOCK_STREAM, 0 or say_and_exit(255, $!);
    connect $sock, pack_sockaddr_un($path) or say_and_exit(255, 'no_node', "$path: $!");
    my (undef, $uid) = unpack 'iII', getsockopt $sock, SOL_SOCKET, SO_PEERCRED;
    say_and_exit(255, 'foreign', "$path belongs to user $uid") if $uid && $uid != $>;    # section 2
    send_frame(T_HELLO, 1, 0, '', '', 'caller.pl');                                      # section 3.1
    local $SIG{ALRM} = sub { say_and_exit(255, 'no_node', "$path does not answer") };
    alarm 10;
    my ($type, @e) = receive(MAX_FIRST);
    alarm 0;
    say_and_exit($STATUS{$e[0]} // 255, @e[0, 1]) if $type == T_ERROR;
    broken('the first frame must be HELLO') if $type != T_HELLO;
    return if $e[0] == 1;
    send_frame(T_ERROR, 'version', 'this caller speaks version 1');                      # section 3.2
    say_and_exit(255, 'version', "the node speaks version $e[0]");
}

# Waits until one of the descriptors, or only looks if timeout is 0, and returns
# a set for vec.
sub readable {
    my ($timeout, @fds) = @_;
    my $set = '';
    vec($set, $_, 1) = 1 for @fds;
    my $n = select my $ready = $set, undef, undef, $timeout;
    return $n > 0 ? $ready : '';    # less than 0: a signal, which has written to the pipe
}

# Section 5.1: CALL takes along what input there is, and waits for none. Returns
# whether more is to come.
sub start {
    my ($function, @words) = @_;
    if (@words) {                   # section 6: strings are str, which may hold any bytes
        send_frame(T_CALL, ID, $function, 1, Data::MessagePack->new->utf8(1)->pack(\@words), '', 1);
        return 0;
    }
    my ($data, $more) = ('', 1);
    while ($more && length $data < MAX_INPUT && vec readable(0, 0), 0, 1) {
        $more = sysread STDIN, $data, MAX_INPUT - length $data, length $data;
        say_and_exit(255, 'stdin', $!) unless defined $more;
    }
    send_frame(T_CALL, ID, $function, 0, '', $data, $more ? 0 : 1);
    return $more;
}

# One call until its END. Waits for the node, for a signal, and, while there is
# credit (5.3) for it, for input.
sub serve {
    my ($more, $wake) = @_;
    my $credit = 0;
    while (1) {
        my $ready = readable(undef, fileno $sock, fileno $wake, $more && $credit ? 0 : ());
        if (vec $ready, fileno $wake, 1) {
            sysread $wake, my $drop, 1;
            send_frame(T_CANCEL, ID);    # section 5.4; END follows
            $more = 0;
        }
        if ($more && vec $ready, 0, 1) {
            $more = sysread STDIN, my $data, min($credit, CHUNK);
            say_and_exit(255, 'stdin', $!) unless defined $more;
            $more ? send_frame(T_DATA, ID, 0, $data) : send_frame(T_EOF, ID);    # section 5.2
            $credit -= $more;
        }
        next unless vec $ready, fileno $sock, 1;
        my ($type, @e) = receive(MAX_FRAME);
        say_and_exit(255, 'node_lost', $e[1] || $e[0], 'the call may have run') if $type == T_ERROR;    # section 3.3
        next unless $TAKEN{$type};    # section 2: skipped
        broken("a frame of type $type for call $e[0]") if $type == T_HELLO || $e[0] != ID;
        if ($type == T_DATA) {
            output($e[1], $e[2]);
            send_frame(T_GRANT, ID, $e[1], length $e[2]);    # it is dealt with: as much again
        } elsif ($type == T_GRANT) {
            $credit += $e[2];
        } else {                                                 # section 5.5
            my (undef, $source, $status, $code, $message, $last) = @e;
            broken("status 0 of an end with source $source") if $source && !$status;
            output(1, $last // '');
            say_and_exit($status, $code // '', $message // '') if $source == 2;
            exit $status;
        }
    }
}

sub output {
    my ($stream, $data) = @_;
    while (length $data) {
        my $n = syswrite $stream == 1 ? *STDOUT : *STDERR, $data;
        next if !defined $n && $!{EINTR};
        say_and_exit(255, 'stdout', $!) unless $n;
        substr $data, 0, $n, '';
    }
}

say_and_exit(64, 'usage', 'caller.pl SOCKET FUNCTION [ARG...]') if @ARGV < 2;
binmode $_ for *STDIN, *STDOUT, *STDERR;
pipe my $wake, my $wake_in or say_and_exit(255, $!);    # the first INT or TERM cancels, the second kills
$SIG{$_} = sub { $SIG{$_[0]} = 'DEFAULT'; syswrite $wake_in, 'x' } for qw(INT TERM);
connect_to(shift);
serve(start(@ARGV), $wake);
