package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

const (
	nodeName    = "node0"
	kubeletPort = 10250
)

// startNode makes the node and serves its Pods' logs, as a kubelet does for `kubectl logs`.
func (r *podRunner) startNode(ctx context.Context, ca *authority) error {
	nodes := r.api.CoreV1().Nodes()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{
		Name: nodeName, Labels: map[string]string{corev1.LabelTopologyZone: "zone0"},
	}}
	if _, err := nodes.Create(ctx, node, metav1.CreateOptions{}); err != nil {
		return err
	}
	room := corev1.ResourceList{
		corev1.ResourceCPU:    resource.MustParse("8"),
		corev1.ResourceMemory: resource.MustParse("16Gi"),
		corev1.ResourcePods:   resource.MustParse("1000"),
	}
	status, err := json.Marshal(map[string]any{"status": corev1.NodeStatus{
		Capacity:    room,
		Allocatable: room,
		Addresses: []corev1.NodeAddress{
			{Type: corev1.NodeInternalIP, Address: nodeAddress},
			{Type: corev1.NodeHostName, Address: nodeName},
		},
		DaemonEndpoints: corev1.NodeDaemonEndpoints{
			KubeletEndpoint: corev1.DaemonEndpoint{Port: kubeletPort},
		},
		Conditions: []corev1.NodeCondition{{
			Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady",
			LastHeartbeatTime: metav1.Now(), LastTransitionTime: metav1.Now(),
		}},
	}})
	if err != nil {
		return err
	}
	_, err = nodes.Patch(ctx, nodeName, types.StrategicMergePatchType, status,
		metav1.PatchOptions{}, "status")
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", fmt.Sprintf("%s:%d", nodeAddress, kubeletPort))
	if err != nil {
		return err
	}
	certificate, err := tls.LoadX509KeyPair(ca.path("kubelet.crt"), ca.path("kubelet.key"))
	if err != nil {
		return err
	}
	server := &http.Server{
		Handler:           http.HandlerFunc(r.serveLogs),
		ReadHeaderTimeout: 10 * time.Second,
		TLSConfig:         &tls.Config{Certificates: []tls.Certificate{certificate}},
	}
	go func() { _ = server.ServeTLS(listener, "", "") }()
	return nil
}

// serveLogs answers GET /containerLogs/NAMESPACE/POD/CONTAINER.
func (r *podRunner) serveLogs(w http.ResponseWriter, request *http.Request) {
	path := strings.Split(strings.Trim(request.URL.Path, "/"), "/")
	if len(path) != 4 || path[0] != "containerLogs" {
		http.NotFound(w, request)
		return
	}
	r.mu.Lock()
	var output *lines
	for _, p := range r.pods {
		if p.object.Namespace == path[1] && p.object.Name == path[2] {
			output = p.output
		}
	}
	r.mu.Unlock()
	if output == nil {
		http.NotFound(w, request)
		return
	}
	query := request.URL.Query()
	since, _ := time.Parse(time.RFC3339, query.Get("sinceTime"))
	if seconds, err := strconv.Atoi(query.Get("sinceSeconds")); err == nil {
		since = time.Now().Add(-time.Duration(seconds) * time.Second)
	}
	tail, err := strconv.Atoi(query.Get("tailLines"))
	if err != nil {
		tail = maxLines
	}
	_, _ = w.Write(output.read(since, tail))
}

// report writes the Pod's status. A Pod that was deleted meanwhile needs none.
func (p *pod) report(ctx context.Context, phase corev1.PodPhase, ready bool, problem string) {
	now := metav1.Now()
	container := corev1.ContainerStatus{
		Name: p.object.Spec.Containers[0].Name, Image: p.object.Spec.Containers[0].Image,
		Ready: ready, Started: &ready,
	}
	if phase == corev1.PodRunning {
		container.State.Running = &corev1.ContainerStateRunning{StartedAt: now}
	} else {
		container.State.Waiting = &corev1.ContainerStateWaiting{
			Reason: "Failed", Message: problem,
		}
	}
	status := corev1.PodStatus{
		Phase: phase, Message: problem, StartTime: &now,
		HostIP: nodeAddress, HostIPs: []corev1.HostIP{{IP: nodeAddress}},
		ContainerStatuses: []corev1.ContainerStatus{container},
		Conditions: []corev1.PodCondition{
			condition(corev1.PodInitialized, true),
			condition(corev1.PodReadyToStartContainers, true),
			condition(corev1.ContainersReady, ready),
			condition(corev1.PodReady, ready),
		},
	}
	if p.address.IsValid() {
		status.PodIP = p.address.String()
		status.PodIPs = []corev1.PodIP{{IP: status.PodIP}}
	}
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": p.object.UID}, "status": status,
	})
	if err == nil {
		_, err = p.api.CoreV1().Pods(p.object.Namespace).Patch(ctx, p.object.Name,
			types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	}
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		fmt.Fprintf(os.Stderr, "cluster: status of Pod %s: %v\n", p, err)
	}
}

func condition(kind corev1.PodConditionType, holds bool) corev1.PodCondition {
	status := corev1.ConditionFalse
	if holds {
		status = corev1.ConditionTrue
	}
	return corev1.PodCondition{Type: kind, Status: status, LastTransitionTime: metav1.Now()}
}

// addresses hands out Pods' addresses. One that was given back rests for a while: who has not yet
// heard that its Pod is gone must not reach another Pod there.
type addresses struct {
	next    netip.Addr
	resting []netip.Addr
}

func newAddresses() addresses { return addresses{next: netip.MustParseAddr("10.88.1.1")} }

func (a *addresses) take() netip.Addr {
	const rest = 64
	if len(a.resting) > rest {
		address := a.resting[0]
		a.resting = a.resting[1:]
		return address
	}
	address := a.next
	a.next = a.next.Next()
	return address
}

func (a *addresses) give(address netip.Addr) { a.resting = append(a.resting, address) }

// lines is what a program prints: the last lines with their times, and all of it in a file.
type lines struct {
	mu      sync.Mutex
	file    *os.File
	partial []byte
	last    []line
}

type line struct {
	at   time.Time
	text []byte
}

const maxLines = 2000

func newLines(path string) (*lines, error) {
	file, err := os.Create(path)
	return &lines{file: file}, err
}

func (l *lines) Write(text []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.partial = append(l.partial, text...)
	for {
		end := bytes.IndexByte(l.partial, '\n')
		if end < 0 {
			break
		}
		l.last = append(l.last, line{time.Now(), bytes.Clone(l.partial[:end+1])})
		l.partial = l.partial[end+1:]
	}
	if spare := len(l.last) - maxLines; spare > 0 {
		l.last = l.last[spare:]
	}
	return l.file.Write(text)
}

// read returns at most so many of the last lines, none older than a time.
func (l *lines) read(since time.Time, most int) []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	var text []byte
	for _, line := range l.last[max(len(l.last)-most, 0):] {
		if !line.at.Before(since) {
			text = append(text, line.text...)
		}
	}
	return text
}
