package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Ringway starts without the kind UDPRoute and serves the rest; once the kind is there, it serves
// it too, and nobody has to start it again.
func TestCRDsAddedLater(t *testing.T) {
	c := withRingway(t)
	namespace := newNamespace(t)
	crd := crdOf(t, "udproutes")
	withoutCRD(t, crd)
	restart(t)
	echo{name: "tcp", protocol: "TCP", replicas: 1}.deploy(t, namespace)
	echo{name: "udp", protocol: "UDP", replicas: 1}.deploy(t, namespace)
	address := net.JoinHostPort(gateway(t, namespace, "later",
		listener("tcp", "TCP", 9000)+", "+listener("udp", "UDP", 9000)), "9000")
	applied(t, namespace, route("TCPRoute", "tcp", "later", "tcp", backend("tcp", 1)))
	reached(t, address, "tcp-")

	must(t, c.install(t.Context(), []*unstructured.Unstructured{crd}))
	eventually(t, "UDPRoute applied", func() error {
		return applyTo(namespace,
			route("UDPRoute", "udp", "later", "udp", backend("udp", 1)))
	})
	eventually(t, "UDP served", func() error {
		if len(askUDP(t, address, 1, time.Second)) == 0 {
			return errors.New("no answer")
		}
		return nil
	})
}

// A cluster with the CRDs of an older release serves TCPRoute and UDPRoute as v1alpha2 only.
func TestOnlyTheOldVersionsAreServed(t *testing.T) {
	c := withRingway(t)
	namespace := newNamespace(t)
	for _, kind := range []string{"tcproutes", "udproutes"} {
		crd := crdOf(t, kind)
		old := crd.DeepCopy()
		must(t, onlyVersion(old, "v1alpha2"))
		withoutCRD(t, crd)
		must(t, c.install(t.Context(), []*unstructured.Unstructured{old}))
	}
	restart(t)
	echo{name: "tcp", protocol: "TCP", replicas: 1}.deploy(t, namespace)
	echo{name: "udp", protocol: "UDP", replicas: 1}.deploy(t, namespace)
	address := net.JoinHostPort(gateway(t, namespace, "old",
		listener("tcp", "TCP", 9000)+", "+listener("udp", "UDP", 9000)), "9000")
	routes := route("TCPRoute", "tcp", "old", "tcp", backend("tcp", 1)) +
		route("UDPRoute", "udp", "old", "udp", backend("udp", 1))
	routes = strings.ReplaceAll(routes, "networking.k8s.io/v1\n", "networking.k8s.io/v1alpha2\n")
	eventually(t, "old routes applied", func() error {
		return applyTo(namespace, routes)
	})
	reached(t, address, "tcp-")
	eventually(t, "UDP served", func() error {
		if len(askUDP(t, address, 1, time.Second)) == 0 {
			return errors.New("no answer")
		}
		return nil
	})
}

// The kind XBackend comes later, from the experimental channel. Without --external-names Ringway
// refuses what leads to one, and the kind has room for the status that says so.
func TestXBackendIsRefused(t *testing.T) {
	c := withRingway(t)
	const group = "gateway.networking.x-k8s.io"
	namespace := newNamespace(t)
	crds, err := c.crds("experimental")
	must(t, err)
	crds = slices.DeleteFunc(crds, func(object *unstructured.Unstructured) bool {
		return object.GetName() != "xbackends."+group
	})
	must(t, c.install(t.Context(), crds))
	gateway(t, namespace, "edge", listener("tcp", "TCP", 9000))
	objects := route("TCPRoute", "edge", "edge", "tcp", "{group: "+group+", kind: XBackend, name: db}") +
		"apiVersion: " + group + `/v1alpha1
kind: XBackend
metadata: {name: db}
spec: {type: ExternalHostname, port: {port: 5432}, externalHostname: {hostname: db.example.com}}
`
	eventually(t, "XBackend applied", func() error { return applyTo(namespace, objects) })
	eventually(t, "the route refused", func() error {
		return routeHasNot(namespace, "edge", "InvalidKind")
	})
	eventually(t, "the XBackend not permitted", func() error {
		backend := &unstructured.Unstructured{}
		backend.SetGroupVersionKind(
			schema.GroupVersionKind{Group: group, Version: "v1alpha1", Kind: "XBackend"})
		if err := c.client.Get(t.Context(), key(namespace, "db"), backend); err != nil {
			return err
		}
		if status := fmt.Sprint(backend.Object["status"]); !strings.Contains(status, "NotPermitted") {
			return errors.New(status)
		}
		return nil
	})
}

// crdOf is the definition of a kind in this run's channel.
func crdOf(t *testing.T, plural string) *unstructured.Unstructured {
	t.Helper()
	objects, err := the.crds(the.channel)
	must(t, err)
	for _, object := range objects {
		if object.GetName() == plural+".gateway.networking.k8s.io" {
			return object
		}
	}
	t.Fatalf("no CRD of %s", plural)
	return nil
}

// withoutCRD takes a kind from the cluster, and puts it back after the test.
func withoutCRD(t *testing.T, crd *unstructured.Unstructured) {
	t.Helper()
	remove := func() error {
		ctx := context.Background()
		if err := the.client.Delete(ctx, crd.DeepCopy()); client.IgnoreNotFound(err) != nil {
			return err
		}
		return the.await(ctx, "CRD gone", patience, func() error {
			err := the.client.Get(ctx, key("", crd.GetName()), crd.DeepCopy())
			if apierrors.IsNotFound(err) {
				return nil
			}
			return errors.Join(err, errors.New("it is still there"))
		})
	}
	must(t, remove())
	t.Cleanup(func() {
		objects := []*unstructured.Unstructured{crd}
		if err := errors.Join(remove(), the.install(context.Background(), objects)); err != nil {
			t.Error(err)
		}
	})
}

// onlyVersion leaves a CRD one of its versions, which is served and stored.
func onlyVersion(crd *unstructured.Unstructured, name string) error {
	versions, _, err := unstructured.NestedSlice(crd.Object, "spec", "versions")
	if err != nil {
		return err
	}
	for _, version := range versions {
		version := version.(map[string]any)
		if version["name"] == name {
			version["served"], version["storage"] = true, true
			return unstructured.SetNestedSlice(crd.Object, []any{version}, "spec", "versions")
		}
	}
	return fmt.Errorf("%s has no version %s", crd.GetName(), name)
}

// restart ends Ringway and starts it again.
func restart(t *testing.T) {
	t.Helper()
	replica := the.ringways[0]
	must(t, replica.process.stop(20*time.Second))
	must(t, the.startReplica(replica))
}
