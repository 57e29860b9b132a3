package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// A load is sessions that ping until it ends, each in its turn waiting a little.
type load struct {
	stop chan struct{}
	all  sync.WaitGroup

	mu   sync.Mutex
	lost []error
}

// underLoad opens so many sessions to an address and keeps them busy.
func underLoad(t *testing.T, address string, count int) *load {
	t.Helper()
	l := &load{stop: make(chan struct{})}
	for range count {
		s, err := dial(address)
		must(t, err)
		l.all.Go(func() { l.keepBusy(s) })
	}
	return l
}

func (l *load) keepBusy(s *session) {
	defer s.conn.Close()
	for {
		if err := s.ping(); err != nil {
			l.mu.Lock()
			l.lost = append(l.lost, fmt.Errorf("session to %s: %w", s.pod, err))
			l.mu.Unlock()
			return
		}
		select {
		case <-l.stop:
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// end stops the load and returns the sessions that were lost.
func (l *load) end() error {
	close(l.stop)
	l.all.Wait()
	return errors.Join(l.lost...)
}

// A Pod that is deleted gets no new session from when its slice says so, and those that it has go
// on for as long as it serves them.
func TestTerminatingPodKeepsItsSessions(t *testing.T) {
	withRingway(t)
	namespace := newNamespace(t)
	echo{name: "echo", protocol: "TCP", replicas: 2, grace: 30}.deploy(t, namespace)
	address := net.JoinHostPort(gateway(t, namespace, "drain", listener("tcp", "TCP", 9000)), "9000")
	applied(t, namespace, route("TCPRoute", "drain", "drain", "tcp", backend("echo", 1)))
	reached(t, address, "echo-")

	load := underLoad(t, address, 40)
	held, err := dial(address)
	must(t, err)
	defer held.conn.Close()
	leaving := held.pod
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: leaving}}
	must(t, the.client.Delete(t.Context(), pod))
	eventually(t, "new sessions elsewhere", func() error {
		for range 20 {
			if err := elsewhere(address, leaving); err != nil {
				return err
			}
		}
		return nil
	})
	for range 100 {
		must(t, elsewhere(address, leaving))
	}
	must(t, the.client.Get(t.Context(), key(namespace, leaving), pod))
	if pod.DeletionTimestamp == nil {
		t.Fatal("the Pod is not terminating: the test shows nothing")
	}
	if err := held.ping(); err != nil {
		t.Errorf("a session of the terminating Pod was lost: %v", err)
	}
	if err := load.end(); err != nil {
		t.Error(err)
	}
}

// elsewhere is an error unless a new session reaches another Pod.
func elsewhere(address, pod string) error {
	s, err := dial(address)
	if err != nil {
		return err
	}
	defer s.conn.Close()
	if s.pod == pod {
		return fmt.Errorf("a new session went to %s", pod)
	}
	return nil
}

// Without the API server the last configuration goes on, and readiness with it; what changes after
// its return is applied.
func TestAPIServerGoesAndReturns(t *testing.T) {
	c := withRingway(t)
	namespace := newNamespace(t)
	echo{name: "first", protocol: "TCP", replicas: 1}.deploy(t, namespace)
	echo{name: "second", protocol: "TCP", replicas: 1}.deploy(t, namespace)
	address := net.JoinHostPort(gateway(t, namespace, "outage", listener("tcp", "TCP", 9000)), "9000")
	applied(t, namespace, route("TCPRoute", "outage", "outage", "tcp", backend("first", 1)))
	reached(t, address, "first-")
	load := underLoad(t, address, 20)

	c.server.kill()
	eventually(t, "the metric that it is gone", func() error {
		if figures(t)["ringway_kubernetes_connected"] != 0 {
			return errors.New("it is said to be connected")
		}
		return nil
	})
	for range 100 {
		s, err := dial(address)
		if err != nil {
			t.Fatalf("without the API server: %v", err)
		}
		s.conn.Close()
		time.Sleep(20 * time.Millisecond)
	}
	if figures(t)["ringway_ready"] != 1 {
		t.Error("it is not ready without the API server")
	}
	must(t, c.startServer(t.Context()))
	applied(t, namespace, route("TCPRoute", "outage", "outage", "tcp", backend("second", 1)))
	reached(t, address, "second-")
	eventually(t, "the metric that it is back", func() error {
		if figures(t)["ringway_kubernetes_connected"] != 1 {
			return errors.New("it is said to be cut off")
		}
		return nil
	})
	if err := load.end(); err != nil {
		t.Error(err)
	}
}

// Both replicas serve; when the one that writes statuses dies, the other writes them.
func TestAnotherReplicaTakesTheLead(t *testing.T) {
	c := withRingway(t)
	namespace := newNamespace(t)
	second, err := c.addReplica(t.Context())
	must(t, err)
	leader := leaderOf(t)
	eventually(t, "two replicas", func() error {
		return errors.Join(leader.process.alive(), second.process.alive(), leases(2))
	})
	gateway(t, namespace, "before", listener("tcp", "TCP", 9000))

	leader.process.kill()
	gateway(t, namespace, "after", listener("tcp", "TCP", 9000))
	if now := leaderOf(t); now == leader {
		t.Errorf("the Lease is still held by %s, which is dead", leader.name())
	}

	must(t, c.startReplica(leader))
	eventually(t, "the dead replica back", func() error { return leases(2) })
	must(t, second.process.stop(20*time.Second))
	c.ringways = c.ringways[:1]
	gateway(t, namespace, "alone", listener("tcp", "TCP", 9000))
}

// leaderLease is held by the replica that writes statuses; each replica has one of its own besides.
const leaderLease = "ringway.dev.gateway-controller"

// leaderOf waits until a replica that lives holds the lead.
func leaderOf(t *testing.T) *Replica {
	t.Helper()
	var leader *Replica
	eventually(t, "a leader", func() error {
		lease := &coordinationv1.Lease{}
		err := the.client.Get(t.Context(), key("ringway-system", leaderLease), lease)
		if err != nil {
			return err
		}
		if lease.Spec.HolderIdentity == nil {
			return errors.New("nobody leads")
		}
		for _, replica := range the.ringways {
			if replica.name() == *lease.Spec.HolderIdentity {
				leader = replica
				return replica.process.alive()
			}
		}
		return fmt.Errorf("unknown leader %s", *lease.Spec.HolderIdentity)
	})
	return leader
}

// leases is an error unless so many replicas hold a Lease of their own.
func leases(count int) error {
	list := &coordinationv1.LeaseList{}
	err := the.client.List(context.Background(), list, client.InNamespace("ringway-system"))
	if err != nil {
		return err
	}
	names := map[string]bool{}
	for _, lease := range list.Items {
		if lease.Name != leaderLease && lease.Spec.HolderIdentity != nil {
			names[*lease.Spec.HolderIdentity] = true
		}
	}
	if len(names) != count {
		return fmt.Errorf("replicas with a Lease are %v", names)
	}
	return nil
}

// When nothing changes, nothing is written; and a change that concerns no status writes none.
func TestStatusIsQuiet(t *testing.T) {
	withRingway(t)
	namespace := newNamespace(t)
	echo{name: "echo", protocol: "TCP", replicas: 1}.deploy(t, namespace)
	gateway(t, namespace, "quiet", listener("tcp", "TCP", 9000)+", "+listener("odd", "INVALID", 1))
	applied(t, namespace, route("TCPRoute", "quiet", "quiet", "tcp", backend("echo", 1))+
		route("TCPRoute", "broken", "quiet", "nowhere", backend("missing", 1)))
	eventually(t, "every status as it will be", func() error {
		found, err := gatewayNow(namespace, "quiet")
		if err != nil {
			return err
		}
		attached := map[gatewayv1.SectionName]int32{}
		for _, listener := range found.Status.Listeners {
			attached[listener.Name] = listener.AttachedRoutes
		}
		if attached["tcp"] != 1 {
			return fmt.Errorf("routes are attached to %v", attached)
		}
		return errors.Join(routeHas(namespace, "quiet", "Accepted"),
			routeHasNot(namespace, "broken", "NoMatchingParent"))
	})

	before := ""
	eventually(t, "quiet for longer than it pauses", func() error {
		now := versions(t, namespace)
		if now == before {
			return nil
		}
		before = now
		time.Sleep(5 * time.Second)
		return errors.New("statuses are still written")
	})
	echo{name: "echo", protocol: "TCP", replicas: 2}.deploy(t, namespace)
	time.Sleep(5 * time.Second)
	if now := versions(t, namespace); now != before {
		t.Errorf("written though nothing had changed:\n%s\nbefore:\n%s", now, before)
	}
}

// versions lists the objects of a namespace that have statuses, and the classes, with what changes
// at every write.
func versions(t *testing.T, namespace string) string {
	t.Helper()
	var text strings.Builder
	for _, list := range []client.ObjectList{
		&gatewayv1.GatewayClassList{}, &gatewayv1.GatewayList{}, &gatewayv1.TCPRouteList{},
	} {
		// Of kinds that have none, the namespace is ignored.
		must(t, the.client.List(t.Context(), list, client.InNamespace(namespace)))
		must(t, meta.EachListItem(list, func(item runtime.Object) error {
			object := item.(client.Object)
			fmt.Fprintf(&text, "%T %s %s\n", object, object.GetName(), object.GetResourceVersion())
			return nil
		}))
	}
	return text.String()
}
