// An empty go-md2man: cli links the real one, for man pages that fbus never makes,
// and a fifth of what each start of fbus costs would be its tables.
module github.com/cpuguy83/go-md2man/v2

go 1.26.0
