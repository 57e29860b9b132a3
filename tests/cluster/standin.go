package main

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net"
	"os"
	"strings"
	"time"

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
	case "broker":
		fmt.Fprintln(os.Stderr, serveBroker(os.Getenv("POD_NAME")))
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

// serveBroker speaks TLS on the port of Kafka's brokers, with a certificate that has the Pod's name.
// It takes the commands of the suite's echo server.
func serveBroker(pod string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: pod},
		NotBefore:    time.Now().Add(-time.Minute),
		NotAfter:     time.Now().Add(24 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	own := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	listener, err := tls.Listen("tcp", ":9094", &tls.Config{Certificates: []tls.Certificate{own}})
	if err != nil {
		return err
	}
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			lines := bufio.NewScanner(conn)
			for lines.Scan() {
				answer := "PONG"
				if strings.TrimSpace(lines.Text()) == "TEST" {
					answer = fmt.Sprintf("hello\n{\"pod\": %q}", pod)
				}
				if _, err := fmt.Fprintln(conn, answer); err != nil {
					return
				}
			}
		}()
	}
}
