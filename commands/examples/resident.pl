#!/usr/bin/env perl
# One process for many calls, a line in, a line out:
#     fbus offer hello --resident lines -- perl hello.pl
#     fbus call hello Bob
use strict;
use warnings;
$| = 1;  # an answer is not held back

while (my $line = <STDIN>) {
    print "hello $line";
}
