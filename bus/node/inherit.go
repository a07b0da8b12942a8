package node

import (
	"net"
	"os"
)

// Inherit makes a Listener of a socket that a service manager holds and has
// passed on. Its path, mode and owner are the manager's business: Close neither
// removes nor locks anything, it only stops accepting, so that who connects then
// waits in the socket's backlog for the next node. Peers are checked as on any
// other socket.
func Inherit(ul *net.UnixListener) *Listener {
	l := &Listener{UnixListener: ul, path: ul.Addr().String()}
	l.SetUnlinkOnClose(false)
	l.spare, _ = os.Open(os.DevNull)
	return l
}
