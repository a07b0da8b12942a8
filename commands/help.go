package commands

import (
	"io"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// group is a heading of a help text, and the names below it. For a flag that is in another
// group in one command, the name is COMMAND/NAME.
type group struct{ title, names string }

// commandGroups are the headings of fbus --help.
var commandGroups = []group{
	{"Run a bus, offer functions", "serve offer up run unit"},
	{"Call functions", "call map"},
	{"Post jobs, for which nobody waits", "post result wait jobs retry purge hold release"},
	{"Look around, find faults", "ls describe ps cancel status doctor log"},
	{"Let other machines in", "invite join tickets revoke"},
	{"Use other languages", "pipe import example"},
}

// flagGroups are the headings of the help of a command.
var flagGroups = []group{
	{"What is sent", "data field json-field input no-stdin arg-file null max-args each arg item-field"},
	{"How the program runs", "args takes encoding allow-options chdir env env-file no-node memory max-output"},
	{"How many processes", "slots max-running warm resident pipeline reply-fd progress-fd max-calls max-idle"},
	{"For callers", "description schema attr idempotent"},
	{"Where it listens, and for whom", "socket socket-group listen no-tcp network trust-max-age serve/keepalive"},
	{"A PKI of your own", "tls-cert tls-key tls-ca tls-crl"},
	{"Bounds", "queue max-buffers max-connections max-per-ticket max-jobs max-spool"},
	{"What it allows", "invite/call invite/offer monitor relay admin"},
	{"Who uses it, and how long", "name ttl token reusable uses ephemeral for-node address"},
	{"Functions and settings", "config trust-owner offer check"},
	{"Which jobs", "state function batch dead older limit"},
	{"Which entries", "tickets/all event last follow"},
	{"When it runs, and how long", "timeout wait no-wait delay at priority grace drain"},
	{"After a failure", "retries backoff at-most-once halt resume"},
	{"Once for each key", "unique unique-for"},
	{"A batch of jobs", "post/batch batch-then"},
	{"When it has ended", "then else finally keep"},
	{"Which workers, and how many calls at once", "on all replies jobs worker"},
	{"Output", "output pretty text json tag unordered watch status-fd status-file joblog log bar no-bar"},
	{"The node", "node jobs/wait log/wait offer/wait purge/wait up/wait keepalive"},
	{"In the shell", "prefix no-check"},
	{"The unit", "user socket-unit"},
	{"Messages", "quiet verbose help"},
}

// fewFlags is how many flags need no headings.
const fewFlags = 8

// section is a heading with what is below it.
type section[T any] struct {
	Title string
	Items []T
}

// sections sorts items into groups by their names. Those without a group come last.
func sections[T any](groups []group, items []T, nameOf func(T) []string) (list []section[T]) {
	for _, g := range append(slices.Clone(groups), group{title: "Other"}) {
		s := section[T]{Title: g.title}
		for _, item := range items {
			if groupOf(groups, nameOf(item)...) == g.title || g.names == "" && groupOf(groups, nameOf(item)...) == "" {
				s.Items = append(s.Items, item)
			}
		}
		if len(s.Items) > 0 {
			list = append(list, s)
		}
	}
	return list
}

// groupOf returns the title of the group that has the first of these names, "" if none has.
func groupOf(groups []group, names ...string) string {
	for _, name := range names {
		for _, g := range groups {
			if slices.Contains(strings.Fields(g.names), name) {
				return g.title
			}
		}
	}
	return ""
}

func printHelp(w io.Writer, template string, of any) {
	cli.HelpPrinterCustom(w, template, of, map[string]any{
		"commandGroups": func(list []*cli.Command) []section[*cli.Command] {
			return sections(commandGroups, list, func(c *cli.Command) []string { return []string{c.Name} })
		},
		"flagGroups": func(c *cli.Command) []section[cli.Flag] {
			flags := append(slices.Clone(c.Flags), cli.HelpFlag)
			if len(flags) <= fewFlags {
				return []section[cli.Flag]{{"Flags", flags}}
			}
			return sections(flagGroups, flags, func(f cli.Flag) []string {
				name, _ := namesOf(f)
				return []string{c.Name + "/" + name, name}
			})
		},
	})
}

const appHelp = `fbus: {{.Usage}}

Usage: fbus COMMAND [flags] …

{{range commandGroups .Commands}}{{.Title}}:
{{range .Items}}  {{printf "%-10s" .Name}} {{.Usage}}
{{end}}
{{end}}{{with call .ExtraInfo}}Companions:
{{range $name, $what := .}}  {{printf "%-10s" $name}} {{$what}}
{{end}}
{{end}}  fbus run --offer shout='tr a-z A-Z' -- sh -c 'echo hello bus | fbus call shout'

fbus COMMAND --help explains a command; fbus --version prints the version.
Exit statuses: the function's own; 64 usage, 65 bad input, 69 no such function,
70 internal, 74 worker lost, 75 busy, 77 denied, 123 some calls of map failed,
124 deadline, 126/127 program cannot be run/not found, 129/130/143 fbus got
HUP/INT/TERM, 255 no node.
`

const commandHelp = `fbus {{.Name}}: {{.Usage}}

Usage: fbus {{.UsageText}}
{{if .Description}}
{{.Description}}
{{end}}
{{range $i, $g := flagGroups .}}{{if $i}}
{{end}}{{.Title}}:
{{range .Items}}  {{.}}
{{end}}{{end}}`
