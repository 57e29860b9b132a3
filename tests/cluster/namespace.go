package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
)

const (
	// inside tells the inner run of this program apart from the outer one.
	inside = "CLUSTER_INSIDE"
	// state holds the cluster's data and certificates, on the inner run's own tmpfs.
	state = "/run/cluster"

	nodeAddress  = "10.88.0.1"
	podNetwork   = "10.88.0.0/16"
	gatewayPool  = "10.99.0.0/16"
	serviceRange = "10.96.0.0/16"
)

// enter runs this program again in user, network, mount, process and IPC namespaces of its own and
// ends with its status. It returns only in the inner run, where it has laid out the network.
//
// The inner run is the first process of its process namespace: when it ends, the kernel kills every
// other one in it, and when the outer run is killed, the inner one is too.
func enter() error {
	if os.Getenv(inside) != "" {
		return furnish()
	}
	// The signal of Pdeathsig comes when the thread that forked ends.
	runtime.LockOSThread()
	raiseLimits()
	inner := exec.Command("/proc/self/exe", os.Args[1:]...)
	inner.Args[0] = os.Args[0]
	inner.Env = append(os.Environ(), inside+"=1")
	inner.Stdin, inner.Stdout, inner.Stderr = os.Stdin, os.Stdout, os.Stderr
	inner.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET | syscall.CLONE_NEWNS |
			syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
	if err := inner.Start(); err != nil {
		return fmt.Errorf("no namespaces of its own (are user namespaces allowed?): %w", err)
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	go func() {
		<-signals
		_ = inner.Process.Kill()
	}()
	err := inner.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return err
	}
	if !inner.ProcessState.Exited() {
		os.Exit(130)
	}
	os.Exit(inner.ProcessState.ExitCode())
	return nil
}

// raiseLimits lifts what counts against the user in a namespace: root there lacks the capability by
// which io_uring's buffers are not counted, and every Pod's descriptors are the harness's too.
func raiseLimits() {
	const memlock = 8
	for _, limit := range []int{memlock, syscall.RLIMIT_NOFILE} {
		var now syscall.Rlimit
		if syscall.Getrlimit(limit, &now) != nil {
			continue
		}
		unlimited := syscall.Rlimit{Cur: ^uint64(0), Max: ^uint64(0)}
		if limit == memlock && syscall.Setrlimit(limit, &unlimited) == nil {
			continue
		}
		now.Cur = now.Max
		_ = syscall.Setrlimit(limit, &now)
	}
}

// furnish makes the inner namespaces habitable: own mounts, a bridge for the Pods, and a range of
// addresses that can all be bound, whichever a Gateway gets (a local route, so called AnyIP).
func furnish() error {
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("mounts can't be made private: %w", err)
	}
	if err := syscall.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := syscall.Mount("tmpfs", "/run", "tmpfs", 0, ""); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	for _, folder := range []string{"/run/netns", state} {
		if err := os.MkdirAll(folder, 0o700); err != nil {
			return err
		}
	}
	if err := os.Setenv("HOME", state); err != nil {
		return err
	}
	return ip(
		"link set lo up",
		"link add br0 type bridge",
		"addr add "+strings.Replace(podNetwork, "10.88.0.0", nodeAddress, 1)+" dev br0",
		"link set br0 up",
		"route add local "+gatewayPool+" dev lo",
	)
}

// ip gives commands to one run of iproute2's ip.
func ip(commands ...string) error {
	run := exec.Command("ip", "-batch", "-")
	run.Stdin = strings.NewReader(strings.Join(commands, "\n") + "\n")
	if out, err := run.CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w: %s", commands, err, out)
	}
	return nil
}

// netns makes a network namespace that is joined to the bridge under an address.
func netns(name, address string, more ...string) error {
	if err := ip("netns add " + name); err != nil {
		return err
	}
	if err := ip(
		"link add "+name+" type veth peer name eth0 netns "+name,
		"link set "+name+" master br0 up",
	); err != nil {
		return err
	}
	run := exec.Command("ip", "-n", name, "-batch", "-")
	run.Stdin = strings.NewReader(strings.Join(append([]string{
		"link set lo up",
		"addr add " + address + "/" + filepath.Base(podNetwork) + " dev eth0",
		"link set eth0 up",
		"route add default via " + nodeAddress,
	}, more...), "\n") + "\n")
	if out, err := run.CombinedOutput(); err != nil {
		return fmt.Errorf("ip -n %s: %w: %s", name, err, out)
	}
	return nil
}
