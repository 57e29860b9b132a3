package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// A kafka is a cluster of brokers as an operator exposes it: a TLSRoute and a Service for the first
// connection, and a pair for each broker, all of one Gateway that the user has made.
type kafka struct {
	// gateway and listener are the names in the operator's documentation.
	gateway, listener string
	// bootstrap is the hostname for the first connection.
	bootstrap expose
	brokers   []expose
}

// expose is one route: its name, its hostname, its Service, and, for a broker, its Pod.
type expose struct{ route, host, service, pod string }

// strimzi is after the proposal 136 of github.com/strimzi/proposals, by which Strimzi makes the
// objects of a listener of the type tlsroute.
func strimzi() kafka {
	k := kafka{gateway: "kafka-gateway", listener: "kafka", bootstrap: expose{
		"my-cluster-kafka-bootstrap", "bootstrap.kafka.example.com", "my-cluster-kafka-bootstrap", "",
	}}
	for node := 1000; node < 1003; node++ {
		name := fmt.Sprintf("my-cluster-aston-%d", node)
		host := fmt.Sprintf("broker-%d.kafka.example.com", node)
		k.brokers = append(k.brokers, expose{name, host, name, name})
	}
	return k
}

// redpanda is after the page "Configure External Access through Gateway API" of Redpanda's
// documentation (26.2).
func redpanda() kafka {
	k := kafka{gateway: "redpanda-gateway", listener: "kafka", bootstrap: expose{
		"redpanda-kafka-default-bootstrap", "redpanda.example.com", "redpanda-gateway-bootstrap", "",
	}}
	for ordinal := range 3 {
		k.brokers = append(k.brokers, expose{
			fmt.Sprintf("redpanda-kafka-default-%d", ordinal),
			fmt.Sprintf("redpanda-%d-broker.example.com", ordinal),
			fmt.Sprintf("gw-redpanda-%d", ordinal),
			fmt.Sprintf("redpanda-%d", ordinal),
		})
	}
	return k
}

func TestBrokersOfStrimzi(t *testing.T)  { testBrokers(t, strimzi()) }
func TestBrokersOfRedpanda(t *testing.T) { testBrokers(t, redpanda()) }

// A client reaches every broker through the bootstrap hostname, and each broker by its own, with the
// broker's own TLS; the operators wait until the routes have a parent in their status.
func testBrokers(t *testing.T, k kafka) {
	withRingway(t)
	namespace := newNamespace(t)
	objects := ""
	for _, broker := range k.brokers {
		labels := "app: kafka, statefulset.kubernetes.io/pod-name: " + broker.pod
		objects += brokerPod(broker.pod, labels) + k.objects(broker, labels)
	}
	objects += k.objects(k.bootstrap, "app: kafka")
	address := net.JoinHostPort(gateway(t, namespace, k.gateway, `{
		name: `+k.listener+`, protocol: TLS, port: 443, tls: {mode: Passthrough},
		allowedRoutes: {kinds: [{group: gateway.networking.k8s.io, kind: TLSRoute}]}}`), "443")
	// A Pod needs its namespace's ServiceAccount.
	eventually(t, "objects applied", func() error { return applyTo(namespace, objects) })

	for _, broker := range k.brokers {
		eventually(t, broker.host, func() error {
			pod, err := brokerAt(address, broker.host)
			if err == nil && pod != broker.pod {
				err = fmt.Errorf("%s answers", pod)
			}
			return err
		})
	}
	eventually(t, "all brokers by "+k.bootstrap.host, func() error {
		seen := map[string]bool{}
		for range 8 * len(k.brokers) {
			pod, err := brokerAt(address, k.bootstrap.host)
			if err != nil {
				return err
			}
			seen[pod] = true
		}
		if len(seen) != len(k.brokers) {
			return fmt.Errorf("only %v answer", seen)
		}
		return nil
	})
	if pod, err := brokerAt(address, "other.example.com"); err == nil {
		t.Errorf("%s answers to a name that no route has", pod)
	}
	for _, of := range append(k.brokers, k.bootstrap) {
		eventually(t, "parents of "+of.route, func() error {
			return tlsRouteAccepted(namespace, of.route)
		})
	}
}

// objects are a route and its Service, for the Pods with the labels.
func (k kafka) objects(of expose, labels string) string {
	return fmt.Sprintf(`---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: %s}
spec:
  hostnames: [%s]
  parentRefs:
  - {group: gateway.networking.k8s.io, kind: Gateway, name: %s, sectionName: %s}
  rules: [{backendRefs: [{name: %[5]s, port: 9094}]}]
---
apiVersion: v1
kind: Service
metadata: {name: %[5]s}
spec:
  type: ClusterIP
  selector: {%[6]s}
  ports: [{name: tcp-external, protocol: TCP, port: 9094, targetPort: 9094}]
`, of.route, of.host, k.gateway, k.listener, of.service, labels)
}

func brokerPod(name, labels string) string {
	return fmt.Sprintf(`---
apiVersion: v1
kind: Pod
metadata: {name: %s, labels: {%s}}
spec:
  containers:
  - name: broker
    image: broker
    env: [{name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
`, name, labels)
}

// brokerAt is the Pod that answers to a server name. It is an error if the TLS is not the Pod's own.
func brokerAt(address, host string) (string, error) {
	dialer := &net.Dialer{Timeout: patience}
	// The certificate has the Pod's name, and nobody has signed it.
	config := &tls.Config{ServerName: host, InsecureSkipVerify: true}
	conn, err := tls.DialWithDialer(dialer, "tcp", address, config)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	s, err := greet(conn)
	if err != nil {
		return "", err
	}
	if name := conn.ConnectionState().PeerCertificates[0].Subject.CommonName; name != s.pod {
		return "", fmt.Errorf("%s answers with the certificate of %s", s.pod, name)
	}
	return s.pod, nil
}

func tlsRouteAccepted(namespace, name string) error {
	route := &gatewayv1.TLSRoute{}
	if err := the.client.Get(context.Background(), key(namespace, name), route); err != nil {
		return err
	}
	parents := route.Status.Parents
	if len(parents) != 1 || !meta.IsStatusConditionTrue(parents[0].Conditions, "Accepted") ||
		!meta.IsStatusConditionTrue(parents[0].Conditions, "ResolvedRefs") {
		return fmt.Errorf("its status is %+v", route.Status)
	}
	return nil
}

// CloudNativePG makes a Service CLUSTER-rw for the primary and CLUSTER-ro for the replicas, which it
// tells apart by a label (its documentation, "Service management"). After a switchover the TCPRoutes
// lead to the new primary and to the new replica.
func TestPrimaryOfCloudNativePG(t *testing.T) {
	withRingway(t)
	namespace := newNamespace(t)
	const role = "cnpg.io/instanceRole"
	objects := instance("cluster-example-1", role+": primary") +
		instance("cluster-example-2", role+": replica")
	for suffix, selected := range map[string]string{"rw": "primary", "ro": "replica"} {
		objects += fmt.Sprintf(`---
apiVersion: v1
kind: Service
metadata: {name: cluster-example-%s}
spec:
  type: ClusterIP
  selector: {cnpg.io/cluster: cluster-example, %s: %s}
  ports: [{name: postgres, protocol: TCP, port: 5432, targetPort: 3000}]
`, suffix, role, selected)
	}
	objects += "---\n" +
		route("TCPRoute", "read-write", "databases", "rw", "{name: cluster-example-rw, port: 5432}") +
		route("TCPRoute", "read-only", "databases", "ro", "{name: cluster-example-ro, port: 5432}")
	address := gateway(t, namespace, "databases",
		listener("rw", "TCP", 5432)+", "+listener("ro", "TCP", 5433))
	// A Pod needs its namespace's ServiceAccount.
	eventually(t, "objects applied", func() error { return applyTo(namespace, objects) })
	writes, reads := net.JoinHostPort(address, "5432"), net.JoinHostPort(address, "5433")
	reached(t, writes, "cluster-example-1")
	reached(t, reads, "cluster-example-2")

	for name, now := range map[string]string{
		"cluster-example-1": "replica", "cluster-example-2": "primary",
	} {
		patch := fmt.Sprintf(`{"metadata": {"labels": {"%s": "%s"}}}`, role, now)
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
		must(t, the.client.Patch(t.Context(), pod,
			client.RawPatch(types.MergePatchType, []byte(patch))))
	}
	reached(t, writes, "cluster-example-2")
	reached(t, reads, "cluster-example-1")
	for range 20 {
		s, err := dial(writes)
		must(t, err)
		err = s.conn.Close()
		if !strings.HasPrefix(s.pod, "cluster-example-2") {
			err = errors.Join(err, fmt.Errorf("%s takes writes", s.pod))
		}
		must(t, err)
	}
}

// instance is a Pod of CloudNativePG's, with an echo server in the place of PostgreSQL.
func instance(name, label string) string {
	return fmt.Sprintf(`---
apiVersion: v1
kind: Pod
metadata: {name: %s, labels: {cnpg.io/cluster: cluster-example, %s}}
spec:
  containers:
  - name: postgres
    image: echo-basic
    env:
    - {name: TCP_ECHO_SERVER, value: "1"}
    - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
`, name, label)
}
