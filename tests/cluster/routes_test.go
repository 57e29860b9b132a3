package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// Of 400 connections, or flows, whose routes give a fifth to a backend that serves, 80 are expected
// to be served; further from it than this lies one run in a billion (six standard deviations of 8).
const (
	shareTried = 400
	shareLeast = 80 - 48
	shareMost  = 80 + 48
)

// A backend that does not exist, and one without endpoints, keep their weight and refuse it: it is
// never given to the others, and nobody is left waiting.
func TestInvalidBackendsRefuseTheirShare(t *testing.T) {
	withRingway(t)
	namespace := newNamespace(t)
	echo{name: "served", protocol: "TCP", replicas: 1}.deploy(t, namespace)
	echo{name: "empty", protocol: "TCP", replicas: 0}.deploy(t, namespace)
	echo{name: "served-udp", protocol: "UDP", replicas: 1}.deploy(t, namespace)
	address := gateway(t, namespace, "shares",
		listener("tcp", "TCP", 9000)+", "+listener("udp", "UDP", 9000))
	applied(t, namespace, route("TCPRoute", "shares", "shares", "tcp",
		backend("served", 2), backend("missing", 4), backend("empty", 4))+
		route("UDPRoute", "shares-udp", "shares", "udp",
			backend("served-udp", 2), backend("missing", 8)))
	address = net.JoinHostPort(address, "9000")
	reached(t, address, "served-")

	served := 0
	for range shareTried {
		s, err := dial(address)
		if err == nil {
			served++
			s.conn.Close()
		} else if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("a client was left waiting: %v", err)
		}
	}
	if served < shareLeast || served > shareMost {
		t.Errorf("%d of %d connections were served, a fifth is due", served, shareTried)
	}

	eventually(t, "UDP served", func() error {
		if len(askUDP(t, address, 20, time.Second)) == 0 {
			return errors.New("no answer")
		}
		return nil
	})
	served = 0
	for _, count := range askUDP(t, address, shareTried, 5*time.Second) {
		served += count
	}
	if served < shareLeast || served > shareMost {
		t.Errorf("%d of %d flows were served, a fifth is due", served, shareTried)
	}
}

// Of several routes on one listener the oldest serves, all are accepted and counted, and the next
// one takes over when it goes.
func TestSupersededRouteTakesOver(t *testing.T) {
	withRingway(t)
	namespace := newNamespace(t)
	echo{name: "first", protocol: "TCP", replicas: 1}.deploy(t, namespace)
	echo{name: "second", protocol: "TCP", replicas: 1}.deploy(t, namespace)
	address := gateway(t, namespace, "hand-over", listener("tcp", "TCP", 9000))
	address = net.JoinHostPort(address, "9000")
	// The name would win for the younger one.
	older := route("TCPRoute", "z-older", "hand-over", "tcp", backend("first", 1))
	applied(t, namespace, older)
	reached(t, address, "first-")
	nextSecond(t)
	applied(t, namespace, route("TCPRoute", "a-younger", "hand-over", "tcp", backend("second", 1)))

	eventually(t, "both counted and accepted", func() error {
		found, err := gatewayNow(namespace, "hand-over")
		if err != nil {
			return err
		}
		if attached := found.Status.Listeners[0].AttachedRoutes; attached != 2 {
			return fmt.Errorf("%d routes are attached", attached)
		}
		return errors.Join(
			routeHas(namespace, "z-older", "Accepted"), routeHas(namespace, "a-younger", "Accepted"),
			routeHas(namespace, "a-younger", "ringway.dev/Superseded"))
	})
	for range 20 {
		s, err := dial(address)
		must(t, err)
		s.conn.Close()
		if !strings.HasPrefix(s.pod, "first-") {
			t.Fatalf("the younger route serves: %s", s.pod)
		}
	}

	held, err := dial(address)
	must(t, err)
	defer held.conn.Close()
	must(t, the.client.Delete(t.Context(), tcpRoute(namespace, "z-older")))
	reached(t, address, "second-")
	if err := held.ping(); err != nil {
		t.Errorf("a session of the route that went was lost: %v", err)
	}
}

// nextSecond waits until a new object would have another creation time, which has whole seconds.
func nextSecond(t *testing.T) {
	t.Helper()
	time.Sleep(1100 * time.Millisecond)
}

func tcpRoute(namespace, name string) *gatewayv1.TCPRoute {
	return &gatewayv1.TCPRoute{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
}

// routeHas is an error unless a TCPRoute's only parent has a condition that is true.
func routeHas(namespace, name, condition string) error {
	route := tcpRoute(namespace, name)
	if err := the.client.Get(context.Background(), key(namespace, name), route); err != nil {
		return err
	}
	if len(route.Status.Parents) != 1 ||
		!meta.IsStatusConditionTrue(route.Status.Parents[0].Conditions, condition) {
		return fmt.Errorf("%s is not %s: %+v", name, condition, route.Status)
	}
	return nil
}

// routeHasNot is an error unless a TCPRoute's only parent has a condition that is false for a reason.
func routeHasNot(namespace, name, reason string) error {
	route := tcpRoute(namespace, name)
	if err := the.client.Get(context.Background(), key(namespace, name), route); err != nil {
		return err
	}
	for _, parent := range route.Status.Parents {
		for _, condition := range parent.Conditions {
			if condition.Status == metav1.ConditionFalse && condition.Reason == reason {
				return nil
			}
		}
	}
	return fmt.Errorf("%s is not refused for %s: %+v", name, reason, route.Status)
}

// Names may be as long as the API lets them be.
func TestLongestNames(t *testing.T) {
	withRingway(t)
	namespace := newNamespace(t)
	echo{name: "echo", protocol: "TCP", replicas: 1}.deploy(t, namespace)
	long := strings.Repeat("a", 253)
	section := strings.Repeat("b", 253)
	address := gateway(t, namespace, long, listener(section, "TCP", 9000))
	applied(t, namespace, route("TCPRoute", long, long, section, backend("echo", 1)))
	reached(t, net.JoinHostPort(address, "9000"), "echo-")
	eventually(t, "Accepted", func() error { return routeHas(namespace, long, "Accepted") })
}

// TCP and UDP of one port number are two listeners, and no conflict.
func TestOnePortForTCPAndUDP(t *testing.T) {
	withRingway(t)
	namespace := newNamespace(t)
	echo{name: "tcp", protocol: "TCP", replicas: 1}.deploy(t, namespace)
	echo{name: "udp", protocol: "UDP", replicas: 1}.deploy(t, namespace)
	address := net.JoinHostPort(gateway(t, namespace, "both",
		listener("tcp", "TCP", 53)+", "+listener("udp", "UDP", 53)), "53")
	applied(t, namespace, route("TCPRoute", "tcp", "both", "tcp", backend("tcp", 1))+
		route("UDPRoute", "udp", "both", "udp", backend("udp", 1)))
	reached(t, address, "tcp-")
	eventually(t, "UDP served", func() error {
		if len(askUDP(t, address, 1, time.Second)) == 0 {
			return errors.New("no answer")
		}
		return nil
	})
}
