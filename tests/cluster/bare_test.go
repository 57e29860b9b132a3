package main

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// The cluster is what the other tests take it for, without Ringway: Deployments, Services and
// slices are Kubernetes' own doing, and real programs answer at the endpoints.
func TestPodsServe(t *testing.T) {
	namespace := newNamespace(t)
	echo{name: "tcp", protocol: "TCP", replicas: 2}.deploy(t, namespace)
	echo{name: "udp", protocol: "UDP", replicas: 1}.deploy(t, namespace)

	pods := map[string]bool{}
	for _, address := range endpoints(t, namespace, "tcp", 2) {
		s, err := dial(address)
		must(t, err)
		pods[s.pod] = true
		s.conn.Close()
	}
	if len(pods) != 2 {
		t.Fatalf("two endpoints lead to the Pods %v", pods)
	}

	answers := askUDP(t, endpoints(t, namespace, "udp", 1)[0], 3, 5*time.Second)
	for pod, count := range answers {
		if count != 3 || !strings.HasPrefix(pod, "udp-") {
			t.Fatalf("answers are %v", answers)
		}
		logs, err := the.typed.CoreV1().Pods(namespace).
			GetLogs(pod, &corev1.PodLogOptions{}).DoRaw(t.Context())
		if err != nil || strings.Count(string(logs), "Received UDP") != 3 {
			t.Fatalf("its log is %q, %v", logs, err)
		}
	}
	if len(answers) != 1 {
		t.Fatalf("answers are %v", answers)
	}
}
