package node

import (
	"net"
	"os"
)

// Inherit makes a Listener of a socket that a service manager holds and has passed on. The
// manager owns its path, mode and owner: Close removes nothing, it only stops accepting, so
// that later clients wait in the socket's backlog for the next node. Peers are checked as on
// any other socket.
func Inherit(ul *net.UnixListener) *Listener {
	l := &Listener{UnixListener: ul, path: ul.Addr().String()}
	l.SetUnlinkOnClose(false)
	l.spare, _ = os.Open(os.DevNull)
	return l
}
