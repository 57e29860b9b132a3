package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// patience is how long what must happen may take; what takes longer is broken.
const patience = time.Minute

// eventually fails the test with the last error if there still is one when patience ends.
func eventually(t *testing.T, what string, ask func() error) {
	t.Helper()
	if err := the.await(t.Context(), what, patience, ask); err != nil {
		t.Fatal(err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newNamespace makes a namespace that is deleted after the test, with all that is in it. Nobody
// waits for that: Kubernetes takes seconds, and each test has names of its own.
func newNamespace(t *testing.T) string {
	t.Helper()
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "test-"}}
	must(t, the.client.Create(t.Context(), namespace))
	t.Cleanup(func() {
		if err := the.client.Delete(context.Background(), namespace); err != nil {
			t.Error(err)
		}
	})
	return namespace.Name
}

// applied applies objects to a namespace.
func applied(t *testing.T, namespace, text string) {
	t.Helper()
	must(t, applyTo(namespace, text))
}

func applyTo(namespace, text string) error {
	objects, err := parse([]byte(text))
	if err != nil {
		return err
	}
	for _, object := range objects {
		object.SetNamespace(namespace)
	}
	return the.apply(context.Background(), objects...)
}

// echo is a Deployment of the suite's echo server and its Service, both of one name.
type echo struct {
	name     string
	protocol string
	replicas int
	// grace is for how many seconds a deleted Pod serves on.
	grace int
}

func (e echo) deploy(t *testing.T, namespace string) {
	t.Helper()
	annotations := ""
	if e.grace > 0 {
		annotations = lingers + `: "yes"`
	}
	applied(t, namespace, fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: %[1]s}
spec:
  selector: {app: %[1]s}
  ports: [{name: echo, protocol: %[2]s, port: 3000, targetPort: 3000}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: %[1]s}
spec:
  replicas: %[3]d
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata:
      labels: {app: %[1]s}
      annotations: {%[4]s}
    spec:
      terminationGracePeriodSeconds: %[5]d
      containers:
      - name: echo
        image: echo-basic
        env:
        - {name: %[2]s_ECHO_SERVER, value: "1"}
        - {name: UDP_PORT, value: "3000"}
        - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
        - {name: NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
`, e.name, e.protocol, e.replicas, annotations, e.grace))
	if e.replicas > 0 {
		endpoints(t, namespace, e.name, e.replicas)
	}
}

// endpoints waits until a Service has so many ready endpoints and returns their addresses.
func endpoints(t *testing.T, namespace, service string, count int) []string {
	t.Helper()
	var addresses []string
	eventually(t, "endpoints of "+service, func() error {
		slices, err := slicesOf(namespace, service)
		if err != nil {
			return err
		}
		addresses = nil
		for _, slice := range slices {
			for _, endpoint := range slice.Endpoints {
				if endpoint.Conditions.Ready != nil && *endpoint.Conditions.Ready {
					addresses = append(addresses, net.JoinHostPort(endpoint.Addresses[0], "3000"))
				}
			}
		}
		if len(addresses) != count {
			return fmt.Errorf("%d of %d endpoints are ready", len(addresses), count)
		}
		return nil
	})
	return addresses
}

func slicesOf(namespace, service string) ([]discoveryv1.EndpointSlice, error) {
	list := &discoveryv1.EndpointSliceList{}
	err := the.client.List(context.Background(), list, client.InNamespace(namespace),
		client.MatchingLabels{discoveryv1.LabelServiceName: service})
	return list.Items, err
}

// gateway applies a Gateway with listeners, waits until it is programmed and returns its address.
func gateway(t *testing.T, namespace, name, listeners string) string {
	t.Helper()
	applied(t, namespace, fmt.Sprintf(`
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: %s}
spec: {gatewayClassName: %s, listeners: [%s]}
`, name, className, listeners))
	return programmed(t, namespace, name)
}

// programmed waits until a Gateway is programmed as it is now and returns its address.
func programmed(t *testing.T, namespace, name string) string {
	t.Helper()
	address := ""
	eventually(t, "Gateway "+name+" programmed", func() error {
		found, err := gatewayNow(namespace, name)
		if err != nil {
			return err
		}
		condition := meta.FindStatusCondition(found.Status.Conditions, "Programmed")
		if condition == nil || condition.Status != metav1.ConditionTrue ||
			condition.ObservedGeneration != found.Generation || len(found.Status.Addresses) == 0 {
			return fmt.Errorf("its status is %+v", found.Status)
		}
		address = found.Status.Addresses[0].Value
		return nil
	})
	return address
}

func gatewayNow(namespace, name string) (*gatewayv1.Gateway, error) {
	found := &gatewayv1.Gateway{}
	return found, the.client.Get(context.Background(), key(namespace, name), found)
}

// listener is one of a Gateway's listeners, that takes routes of its own namespace.
func listener(name, protocol string, port int) string {
	return fmt.Sprintf("{name: %s, protocol: %s, port: %d}", name, protocol, port)
}

// route is a TCPRoute or UDPRoute from the listeners of a Gateway to weighted Services.
func route(kind, name, gateway, section string, backends ...string) string {
	return fmt.Sprintf(`
apiVersion: gateway.networking.k8s.io/v1
kind: %s
metadata: {name: %s}
spec:
  parentRefs: [{name: %s, sectionName: %s}]
  rules: [{backendRefs: [%s]}]
---
`, kind, name, gateway, section, strings.Join(backends, ", "))
}

func backend(service string, weight int) string {
	return fmt.Sprintf("{name: %s, port: 3000, weight: %d}", service, weight)
}

// A session is one connection to a TCP echo server.
type session struct {
	conn   net.Conn
	reader *bufio.Reader
	// pod is the name of the Pod at its other end.
	pod string
}

// dial opens a session and asks which Pod it has reached.
func dial(address string) (*session, error) {
	conn, err := net.DialTimeout("tcp", address, patience)
	if err != nil {
		return nil, err
	}
	return greet(conn)
}

// greet reads the greeting of the Pod at the other end of a connection.
func greet(conn net.Conn) (*session, error) {
	s := &session{conn: conn, reader: bufio.NewReader(conn)}
	text, err := s.ask("TEST", 2)
	if err != nil {
		conn.Close()
		return nil, err
	}
	var answer struct{ Pod string }
	if err := json.Unmarshal([]byte(text), &answer); err != nil {
		conn.Close()
		return nil, fmt.Errorf("%q: %w", text, err)
	}
	s.pod = answer.Pod
	return s, nil
}

// ask sends a line and returns the last of the lines that come back.
func (s *session) ask(text string, lines int) (answer string, err error) {
	if err := s.conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	if _, err := fmt.Fprintln(s.conn, text); err != nil {
		return "", err
	}
	for range lines {
		if answer, err = s.reader.ReadString('\n'); err != nil {
			return "", err
		}
	}
	return strings.TrimSpace(answer), nil
}

// ping shows that the session still works.
func (s *session) ping() error {
	answer, err := s.ask("PING", 1)
	if err == nil && answer != "PONG" {
		err = fmt.Errorf("answer %q", answer)
	}
	return err
}

// reached waits until an address leads to a Pod whose name has a prefix.
func reached(t *testing.T, address, prefix string) {
	t.Helper()
	eventually(t, "answer of "+prefix, func() error {
		s, err := dial(address)
		if err != nil {
			return err
		}
		defer s.conn.Close()
		if !strings.HasPrefix(s.pod, prefix) {
			return fmt.Errorf("%s answers", s.pod)
		}
		return nil
	})
}

// askUDP sends a datagram from so many new sockets and returns how many answers each Pod has sent
// before the time is over.
func askUDP(t *testing.T, address string, sockets int, within time.Duration) map[string]int {
	t.Helper()
	pods := make(chan string, sockets)
	for range sockets {
		conn, err := net.Dial("udp", address)
		must(t, err)
		go func() {
			defer conn.Close()
			pods <- answerOf(conn, within)
		}()
	}
	answers := map[string]int{}
	for range sockets {
		if pod := <-pods; pod != "" {
			answers[pod]++
		}
	}
	return answers
}

func answerOf(conn net.Conn, within time.Duration) string {
	if conn.SetDeadline(time.Now().Add(within)) != nil {
		return ""
	}
	if _, err := conn.Write([]byte("hello")); err != nil {
		return ""
	}
	buffer := make([]byte, 2048)
	n, err := conn.Read(buffer)
	if err != nil {
		return ""
	}
	var answer struct{ Pod string }
	_ = json.Unmarshal(buffer[:n], &answer)
	return answer.Pod
}
