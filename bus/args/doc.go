// Package args has what a call carries and how it ends: the kinds of arguments
// and their encodings, the end status, the codes of errors and the error type.
// It is what packages bus and exec share.
package args
