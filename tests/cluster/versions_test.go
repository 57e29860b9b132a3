package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
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
