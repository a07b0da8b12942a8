// Package args defines what a call carries and how it ends: the kinds of arguments
// and their encodings, the end status, the codes of errors and the error type.
// Packages bus and exec share it.
package args
