package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// What a policy says is enforced, and so is that it is gone; what can't be is refused, by the API
// server or in the status.
func TestPolicyIsEnforced(t *testing.T) {
	withRingway(t)
	namespace := newNamespace(t)
	echo{name: "echo", protocol: "TCP", replicas: 1}.deploy(t, namespace)
	address := net.JoinHostPort(gateway(t, namespace, "edge", listener("tcp", "TCP", 9000)), "9000")
	applied(t, namespace, route("TCPRoute", "edge", "edge", "tcp", backend("echo", 1)))
	reached(t, address, "echo-")

	// The test and the Gateway are on one machine: the kernel gives both the Gateway's address.
	applied(t, namespace, policy(`{deny: ["`+gatewayPool+`"]}`))
	eventually(t, "clients denied", func() error {
		s, err := dial(address)
		if err == nil {
			s.conn.Close()
			return errors.New("a client came in")
		}
		return nil
	})
	eventually(t, "the policy accepted", func() error { return policyIs(namespace, "True") })

	applied(t, namespace, policy("{maxSessions: 1}"))
	reached(t, address, "echo-")
	eventually(t, "no more than one session on each core", func() error {
		var held []net.Conn
		defer func() {
			for _, conn := range held {
				conn.Close()
			}
		}()
		for range 40 {
			s, err := dial(address)
			if err == nil {
				held = append(held, s.conn)
			} else if !errors.Is(err, io.EOF) && !strings.Contains(err.Error(), "reset") {
				return err
			}
		}
		if len(held) == 40 {
			return errors.New("all sessions came in")
		}
		return nil
	})

	if err := applyTo(namespace, policy("{maxSessions: -1}")); err == nil {
		t.Error("the API server takes a limit below 0")
	}
	applied(t, namespace, policy("{congestion: nowhere}"))
	eventually(t, "the policy refused", func() error { return policyIs(namespace, "False") })
	eventually(t, "an event on the policy", func() error {
		return hasEvent(namespace, "L4Policy", "Invalid")
	})

	must(t, the.client.Delete(t.Context(), policyObject(namespace)))
	reached(t, address, "echo-")
}

// A reference into another namespace leads somewhere from when a ReferenceGrant allows it, until
// none does.
func TestReferenceGrantComesAndGoes(t *testing.T) {
	withRingway(t)
	namespace, other := newNamespace(t), newNamespace(t)
	echo{name: "echo", protocol: "TCP", replicas: 1}.deploy(t, other)
	address := net.JoinHostPort(gateway(t, namespace, "grants", listener("tcp", "TCP", 9000)), "9000")
	applied(t, namespace, route("TCPRoute", "grants", "grants", "tcp",
		fmt.Sprintf("{name: echo, namespace: %s, port: 3000}", other)))
	refused := func() error {
		s, err := dial(address)
		if err == nil {
			s.conn.Close()
			return errors.New("it is served")
		}
		return nil
	}
	eventually(t, "refused without a grant", func() error {
		return errors.Join(refused(), routeHasNot(namespace, "grants", "RefNotPermitted"))
	})
	eventually(t, "an event on the route", func() error {
		return hasEvent(namespace, "TCPRoute", "RefNotPermitted")
	})

	grant := fmt.Sprintf(`
apiVersion: gateway.networking.k8s.io/v1
kind: ReferenceGrant
metadata: {name: grant}
spec:
  from: [{group: gateway.networking.k8s.io, kind: TCPRoute, namespace: %s}]
  to: [{group: "", kind: Service}]
`, namespace)
	applied(t, other, grant)
	reached(t, address, "echo-")
	eventually(t, "resolved", func() error { return routeHas(namespace, "grants", "ResolvedRefs") })

	objects, err := parse([]byte(grant))
	must(t, err)
	objects[0].SetNamespace(other)
	must(t, the.client.Delete(t.Context(), objects[0]))
	eventually(t, "refused again", refused)
}

// policy is an L4Policy for the listeners of the Gateway "edge".
func policy(listener string) string {
	return fmt.Sprintf(`
apiVersion: ringway.dev/v1alpha1
kind: L4Policy
metadata: {name: policy}
spec:
  targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: edge}]
  listener: %s
`, listener)
}

func policyObject(namespace string) *unstructured.Unstructured {
	object := &unstructured.Unstructured{}
	object.SetGroupVersionKind(
		schema.GroupVersionKind{Group: "ringway.dev", Version: "v1alpha1", Kind: "L4Policy"})
	object.SetNamespace(namespace)
	object.SetName("policy")
	return object
}

// policyIs is an error unless the policy's status says of its Gateway that it is accepted, or not,
// as it is now.
func policyIs(namespace, accepted string) error {
	object := policyObject(namespace)
	if err := the.client.Get(context.Background(), client.ObjectKeyFromObject(object), object); err != nil {
		return err
	}
	text, err := json.Marshal(object.Object["status"])
	if err != nil {
		return err
	}
	var status struct {
		Ancestors []struct {
			Conditions []struct {
				Type, Status       string
				ObservedGeneration int64
			}
		}
	}
	if err := json.Unmarshal(text, &status); err != nil {
		return err
	}
	for _, ancestor := range status.Ancestors {
		for _, condition := range ancestor.Conditions {
			if condition.Type == "Accepted" && condition.Status == accepted &&
				condition.ObservedGeneration == object.GetGeneration() {
				return nil
			}
		}
	}
	return fmt.Errorf("its status is %s", text)
}

// hasEvent is an error unless there is an event for this reason on an object of this kind.
func hasEvent(namespace, kind, reason string) error {
	list := &eventsv1.EventList{}
	err := the.client.List(context.Background(), list, client.InNamespace(namespace))
	if err != nil {
		return err
	}
	for _, event := range list.Items {
		if event.Regarding.Kind == kind && event.Reason == reason {
			return nil
		}
	}
	return fmt.Errorf("none of %d events", len(list.Items))
}
