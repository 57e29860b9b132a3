package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

const (
	// notReady on a Pod makes it not ready, as a failing readiness probe would.
	notReady = "cluster/not-ready"
	// lingers on a Pod lets its program run on after the Pod is deleted, until its grace period is
	// over, as one does that has sessions to finish.
	lingers = "cluster/lingers"
)

// podRunner does a kubelet's and the scheduler's work: it binds every Pod to the one node and runs
// its program in a network namespace of its own.
type podRunner struct {
	api  kubernetes.Interface
	bin  string
	logs string

	mu        sync.Mutex
	pods      map[types.UID]*pod
	addresses addresses
	made      int
}

// pod is one Pod; its own goroutine, live, does everything for it in order.
type pod struct {
	*podRunner
	// object is the Pod when it was first seen: only its fixed parts are read.
	object *corev1.Pod
	// deleted is closed when the Pod is to end.
	deleted chan struct{}
	ready   chan bool
	output  *lines
	folder  string
	netns   string
	address netip.Addr
	process *exec.Cmd
	ended   chan struct{}
}

func (c *Cluster) startPods(ctx context.Context) error {
	c.pods = &podRunner{
		api: c.typed, bin: c.bin, logs: filepath.Join(c.logs, "pods"),
		pods: map[types.UID]*pod{}, addresses: newAddresses(),
	}
	if err := os.MkdirAll(c.pods.logs, 0o755); err != nil {
		return err
	}
	if err := c.pods.startNode(ctx, c.ca); err != nil {
		return err
	}
	watch := cache.NewListWatchFromClient(
		c.typed.CoreV1().RESTClient(), "pods", "", fields.Everything())
	_, informer := cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: watch,
		ObjectType:    &corev1.Pod{},
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc:    func(seen any) { c.pods.see(ctx, seen.(*corev1.Pod)) },
			UpdateFunc: func(_, seen any) { c.pods.see(ctx, seen.(*corev1.Pod)) },
			DeleteFunc: c.pods.gone,
		},
	})
	go informer.RunWithContext(ctx)
	return nil
}

func (r *podRunner) see(ctx context.Context, object *corev1.Pod) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.pods[object.UID]
	if p == nil {
		r.made++
		p = &pod{
			podRunner: r,
			object:    object,
			deleted:   make(chan struct{}),
			ready:     make(chan bool, 1),
			netns:     fmt.Sprintf("pod%d", r.made),
			ended:     make(chan struct{}),
		}
		p.folder = filepath.Join(state, p.netns)
		r.pods[object.UID] = p
		go p.live(ctx)
	}
	if object.DeletionTimestamp != nil {
		p.end()
		return
	}
	// Only the latest wish counts.
	select {
	case <-p.ready:
	default:
	}
	p.ready <- object.Annotations[notReady] == ""
}

// gone is told of Pods that are no more, deleted by the runner or by force.
func (r *podRunner) gone(seen any) {
	if unknown, ok := seen.(cache.DeletedFinalStateUnknown); ok {
		seen = unknown.Obj
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	uid := seen.(*corev1.Pod).UID
	if p := r.pods[uid]; p != nil {
		p.end()
		delete(r.pods, uid)
	}
}

// end is called with the lock held.
func (p *pod) end() {
	select {
	case <-p.deleted:
	default:
		close(p.deleted)
	}
}

func (p *pod) String() string { return p.object.Namespace + "/" + p.object.Name }

// live is a Pod's life. A failure is said in the runner's log and in the Pod's status; the Pod then
// waits for its deletion like any other.
func (p *pod) live(ctx context.Context) {
	output, err := newLines(filepath.Join(p.logs, p.object.Namespace+"_"+p.object.Name+".log"))
	if err == nil {
		p.output = output
		err = p.begin(ctx)
	}
	switch {
	case errors.Is(err, errDeleted):
	case err != nil:
		fmt.Fprintf(os.Stderr, "cluster: Pod %s: %v\n", p, err)
		p.report(ctx, corev1.PodPending, false, err.Error())
	}
	p.follow(ctx, err == nil)
	p.linger()
	p.clear()
	zero := int64(0)
	err = p.api.CoreV1().Pods(p.object.Namespace).Delete(ctx, p.object.Name, metav1.DeleteOptions{
		GracePeriodSeconds: &zero, Preconditions: metav1.NewUIDPreconditions(string(p.object.UID)),
	})
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		fmt.Fprintf(os.Stderr, "cluster: delete Pod %s: %v\n", p, err)
	}
}

var errDeleted = errors.New("deleted meanwhile")

func (p *pod) begin(ctx context.Context) error {
	if p.object.Spec.NodeName == "" {
		err := p.api.CoreV1().Pods(p.object.Namespace).Bind(ctx, &corev1.Binding{
			ObjectMeta: metav1.ObjectMeta{Name: p.object.Name, UID: p.object.UID},
			Target:     corev1.ObjectReference{Kind: "Node", Name: nodeName},
		}, metav1.CreateOptions{})
		switch {
		case apierrors.IsNotFound(err):
			return errDeleted
		case err != nil && !apierrors.IsConflict(err):
			return err
		}
	}
	if len(p.object.Spec.Containers) != 1 {
		return fmt.Errorf("%d containers, the runner knows Pods of one",
			len(p.object.Spec.Containers))
	}
	if err := p.writeVolumes(ctx); err != nil {
		return err
	}
	p.mu.Lock()
	p.address = p.addresses.take()
	p.mu.Unlock()
	if err := netns(p.netns, p.address.String()); err != nil {
		return err
	}
	if err := p.startProgram(); err != nil {
		return err
	}
	return p.awaitListening()
}

// follow keeps the Pod's status true until it is deleted.
func (p *pod) follow(ctx context.Context, running bool) {
	if !running {
		<-p.deleted
		return
	}
	// Nothing is reported twice: a report is itself a change of the Pod.
	reported := false
	var last bool
	for {
		select {
		case <-p.deleted:
			return
		case <-p.ended:
			p.report(ctx, corev1.PodFailed, false, "its program ended")
			<-p.deleted
			return
		case ready := <-p.ready:
			if !reported || ready != last {
				p.report(ctx, corev1.PodRunning, ready, "")
				reported, last = true, ready
			}
		}
	}
}

// linger waits as long as a program that takes its whole grace period.
func (p *pod) linger() {
	grace := p.object.Spec.TerminationGracePeriodSeconds
	if p.process == nil || grace == nil || p.object.Annotations[lingers] == "" {
		return
	}
	select {
	case <-p.ended:
	case <-time.After(time.Duration(*grace) * time.Second):
	}
}

// clear ends the program and takes away all that was made for it.
func (p *pod) clear() {
	if p.process != nil {
		_ = p.process.Process.Kill()
		<-p.ended
	}
	if p.address.IsValid() {
		if err := ip("netns del " + p.netns); err != nil {
			fmt.Fprintf(os.Stderr, "cluster: Pod %s: %v\n", p, err)
		}
		p.mu.Lock()
		p.addresses.give(p.address)
		p.mu.Unlock()
	}
	_ = os.RemoveAll(p.folder)
}

// program is what runs for an image, and what is added to its environment.
func (p *pod) program(image string) (path string, env []string, err error) {
	switch {
	case strings.Contains(image, "echo-basic"):
		return filepath.Join(p.bin, "echo-basic"), nil, nil
	case strings.Contains(image, "coredns"):
		return "/proc/self/exe", []string{standIn + "=dns"}, nil
	case image == "broker":
		return "/proc/self/exe", []string{standIn + "=broker"}, nil
	default:
		return "", nil, fmt.Errorf("the runner has no program for image %s", image)
	}
}

func (p *pod) startProgram() error {
	container := p.object.Spec.Containers[0]
	path, env, err := p.program(container.Image)
	if err != nil {
		return err
	}
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return err
	}
	for _, variable := range container.Env {
		value, err := p.value(variable)
		if err != nil {
			return err
		}
		env = append(env, variable.Name+"="+p.mounted(value))
	}
	run := exec.Command("ip", "netns", "exec", p.netns, path)
	for _, argument := range container.Args {
		run.Args = append(run.Args, p.mounted(argument))
	}
	run.Env = append([]string{"PATH=" + os.Getenv("PATH")}, env...)
	run.Stdout, run.Stderr = p.output, p.output
	if err := run.Start(); err != nil {
		return err
	}
	p.process = run
	go func() {
		_ = run.Wait()
		close(p.ended)
	}()
	return nil
}

func (p *pod) value(variable corev1.EnvVar) (string, error) {
	if variable.ValueFrom == nil {
		return variable.Value, nil
	}
	if variable.ValueFrom.FieldRef != nil {
		switch variable.ValueFrom.FieldRef.FieldPath {
		case "metadata.name":
			return p.object.Name, nil
		case "metadata.namespace":
			return p.object.Namespace, nil
		case "status.podIP":
			return p.address.String(), nil
		case "spec.nodeName":
			return nodeName, nil
		}
	}
	return "", fmt.Errorf("the runner can't give variable %s its value", variable.Name)
}

func (p *pod) mounted(text string) string {
	return realPaths(p.object.Spec.Containers[0], p.folder, text)
}

// realPaths names files of a container's volumes by where they really are, each volume in a folder
// of its name, so that nothing need be mounted.
func realPaths(container corev1.Container, folder, text string) string {
	for _, mount := range container.VolumeMounts {
		text = strings.ReplaceAll(text, mount.MountPath, filepath.Join(folder, mount.Name))
	}
	return text
}

// writeVolumes writes the Secrets and ConfigMaps that the Pod mounts, once they exist.
func (p *pod) writeVolumes(ctx context.Context) error {
	for _, volume := range p.object.Spec.Volumes {
		var read func() (map[string][]byte, error)
		var items []corev1.KeyToPath
		switch {
		case volume.Secret != nil:
			items = volume.Secret.Items
			read = func() (map[string][]byte, error) { return p.secret(ctx, volume.Secret.SecretName) }
		case volume.ConfigMap != nil:
			items = volume.ConfigMap.Items
			read = func() (map[string][]byte, error) { return p.configMap(ctx, volume.ConfigMap.Name) }
		case volume.Projected != nil:
			// The ServiceAccount's token, which none of the programs asks for.
			continue
		default:
			return fmt.Errorf("the runner does not know the kind of volume %s", volume.Name)
		}
		data, err := p.awaitData(read)
		if err != nil {
			return fmt.Errorf("volume %s: %w", volume.Name, err)
		}
		if err := writeData(filepath.Join(p.folder, volume.Name), items, data); err != nil {
			return err
		}
	}
	return nil
}

// awaitData waits for an object that is made later than the Pod, as a kubelet does.
func (p *pod) awaitData(read func() (map[string][]byte, error)) (map[string][]byte, error) {
	for {
		data, err := read()
		if err == nil || !apierrors.IsNotFound(err) {
			return data, err
		}
		select {
		case <-p.deleted:
			return nil, errDeleted
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (p *pod) secret(ctx context.Context, name string) (map[string][]byte, error) {
	secret, err := p.api.CoreV1().Secrets(p.object.Namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	return secret.Data, nil
}

func (p *pod) configMap(ctx context.Context, name string) (map[string][]byte, error) {
	found, err := p.api.CoreV1().ConfigMaps(p.object.Namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	return textOf(found), nil
}

func textOf(found *corev1.ConfigMap) map[string][]byte {
	data := maps.Clone(found.BinaryData)
	if data == nil {
		data = map[string][]byte{}
	}
	for name, text := range found.Data {
		data[name] = []byte(text)
	}
	return data
}

func writeData(folder string, items []corev1.KeyToPath, data map[string][]byte) error {
	paths := map[string]string{}
	for name := range data {
		paths[name] = name
	}
	if len(items) > 0 {
		clear(paths)
		for _, item := range items {
			paths[item.Key] = item.Path
		}
	}
	for name, path := range paths {
		path = filepath.Join(folder, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(path, data[name], 0o600); err != nil {
			return err
		}
	}
	return nil
}

// awaitListening waits until the program listens, and no longer adds sockets to those it has. None
// is asked by a connection, which a program that counts them would see.
func (p *pod) awaitListening() error {
	before := ""
	for {
		now := p.listening()
		if now != "" && now == before {
			return nil
		}
		before = now
		select {
		case <-p.deleted:
			return errDeleted
		case <-p.ended:
			return fmt.Errorf("its program ended: %s", p.process.ProcessState)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// listening is the local addresses of listening TCP and of all UDP sockets in the Pod.
func (p *pod) listening() string {
	const listen, unconnected = "0A", "07"
	var sockets strings.Builder
	for _, table := range []string{"tcp", "tcp6", "udp", "udp6"} {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", p.process.Process.Pid, table))
		if err != nil {
			return ""
		}
		for line := range bytes.Lines(text) {
			words := bytes.Fields(line)
			if len(words) < 4 {
				continue
			}
			if state := string(words[3]); state == listen || state == unconnected {
				fmt.Fprintf(&sockets, "%s %s\n", table, words[1])
			}
		}
	}
	return sockets.String()
}
