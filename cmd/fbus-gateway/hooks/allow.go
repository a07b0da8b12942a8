package hooks

import (
	"net"
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"

	"fbus/bus/args"
)

// allowed is an element of allow: a host, whose name may be a glob, or addresses. Both may have a port.
type allowed struct {
	host   string
	prefix netip.Prefix
	port   uint16 // 0: any
}

type allowList []allowed

// parseAllowed parses HOST, HOST:PORT, an address, or a network as 10.0.0.0/8.
func parseAllowed(text string) (allowed, *args.Error) {
	if p, err := netip.ParsePrefix(text); err == nil {
		return allowed{prefix: p.Masked()}, nil
	}
	host, port := text, ""
	if h, p, err := net.SplitHostPort(text); err == nil {
		host, port = h, p
	}
	var a allowed
	if port != "" {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return a, args.Errorf(args.CodeUsage, "%q: invalid port", args.Shown(text))
		}
		a.port = uint16(n)
	}
	if ip, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		ip = ip.Unmap().WithZone("")
		a.prefix = netip.PrefixFrom(ip, ip.BitLen())
		return a, nil
	}
	a.host = cleanHost(host)
	valid := func(c rune) bool {
		return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || strings.ContainsRune("-._*?", c)
	}
	if a.host == "" || strings.ContainsFunc(a.host, func(c rune) bool { return !valid(c) }) {
		return a, args.Errorf(args.CodeUsage, "%q must be HOST, HOST:PORT, an address, or a network", args.Shown(text)).WithHint("as hooks.example.com, *.example.com:8443 or 10.0.0.0/8")
	}
	return a, nil
}

func cleanHost(host string) string { return strings.TrimSuffix(strings.ToLower(host), ".") }

// parseURL parses where a webhook goes.
func parseURL(text string) (*url.URL, *args.Error) {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "":
		return nil, args.Errorf(args.CodeUsage, "it must be a URL that begins with https:// or http://")
	case u.User != nil:
		return nil, args.Errorf(args.CodeUsage, "a URL cannot have a user name or a password: they would be shown").WithHint("webhooks are signed: secret-file")
	}
	return u, nil
}

// host reports whether webhooks may go to the host of a URL.
func (l allowList) host(u *url.URL) bool {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	host := cleanHost(u.Hostname())
	ip, err := netip.ParseAddr(host)
	return slices.ContainsFunc(l, func(a allowed) bool {
		switch {
		case a.port != 0 && strconv.Itoa(int(a.port)) != port:
			return false
		case err == nil:
			return a.prefix.IsValid() && a.prefix.Contains(ip.Unmap().WithZone(""))
		}
		ok, _ := path.Match(a.host, host)
		return ok
	})
}

// address checks an address to which a host was resolved. One that is not public has to be listed itself: else
// whoever has the name could reach what is behind the gateway.
func (l allowList) address(host, resolved string) error {
	at, err := netip.ParseAddrPort(resolved)
	if err != nil {
		return err
	}
	ip := at.Addr().Unmap().WithZone("")
	listed := slices.ContainsFunc(l, func(a allowed) bool {
		return (a.port == 0 || a.port == at.Port()) &&
			(a.prefix.IsValid() && a.prefix.Contains(ip) || a.host == "localhost" && cleanHost(host) == a.host && ip.IsLoopback())
	})
	if listed || public(ip) {
		return nil
	}
	return args.BadInput("%s has the address %v, which is not public", args.Shown(host), ip).WithHint("allow in gateway.toml can list it: %q", ip)
}

// notPublic are networks of special use (RFC 6890) that [netip.Addr] does not tell apart.
var notPublic = prefixes(
	"0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4",
	"2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", // Teredo and 6to4 among them: addresses of IPv4 inside
)

var global6 = netip.MustParsePrefix("2000::/3")

func prefixes(texts ...string) (list []netip.Prefix) {
	for _, text := range texts {
		list = append(list, netip.MustParsePrefix(text))
	}
	return list
}

// public reports whether an address is one of the Internet.
func public(ip netip.Addr) bool {
	return ip.IsGlobalUnicast() && !ip.IsPrivate() && (ip.Is4() || global6.Contains(ip)) &&
		!slices.ContainsFunc(notPublic, func(p netip.Prefix) bool { return p.Contains(ip) })
}
