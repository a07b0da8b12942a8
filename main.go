// Command fbus publishes functions from the shell.
package main

import (
	"os"

	"fbus/commands"
)

func main() {
	os.Exit(commands.Main())
}
