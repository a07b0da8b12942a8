#!/usr/bin/env perl
# One process for many calls, JSON-RPC 2.0, one message a line:
#     fbus offer hello --resident json -- perl hello.pl
#     fbus call hello Bob; fbus call -f name=Bob hello
use strict;
use warnings;
use JSON::PP;
my $json = JSON::PP->new->utf8;
$| = 1;  # an answer is not held back

while (my $line = <STDIN>) {
    my $request = $json->decode($line);
    next unless exists $request->{id};  # $/cancelRequest: call params.id was cancelled
    my $params = $request->{params};
    my $name   = ref $params eq 'HASH' ? $params->{name} : @$params == 1 ? $params->[0] : undef;
    my %answer = defined $name
        ? (result => { hello => $name })
        : (error => { code => -32602, message => 'one name is due' });  # exit status 1 for the caller
    print $json->encode({ jsonrpc => '2.0', id => $request->{id}, %answer }), "\n";
}
