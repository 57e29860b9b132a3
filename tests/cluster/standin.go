package main

import (
	"fmt"
	"net"
	"os"

	"github.com/miekg/dns"
)

// standIn is set for a run of this program that takes the place of another in a Pod.
const standIn = "CLUSTER_STAND_IN"

// runStandIn does not return when this run is a stand-in.
func runStandIn() {
	switch name := os.Getenv(standIn); name {
	case "":
		return
	case "dns":
		fmt.Fprintln(os.Stderr, serveDNS())
	default:
		fmt.Fprintf(os.Stderr, "no stand-in %q\n", name)
	}
	os.Exit(1)
}

// serveDNS answers every question with one address record, as much of CoreDNS as the suite asks.
func serveDNS() error {
	answer := func(w dns.ResponseWriter, query *dns.Msg) {
		reply := new(dns.Msg).SetReply(query)
		reply.Answer = append(reply.Answer, &dns.A{
			Hdr: dns.RR_Header{
				Name: query.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 1,
			},
			A: net.IPv4(192, 0, 2, 53),
		})
		_ = w.WriteMsg(reply)
	}
	server := &dns.Server{Addr: ":53", Net: "udp", Handler: dns.HandlerFunc(answer)}
	return server.ListenAndServe()
}
