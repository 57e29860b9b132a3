package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const (
	scaleGateways  = 16
	scaleListeners = 1000
	scaleServices  = 100
	// Of one Service.
	scaleEndpoints = 100
	scaleSessions  = 200
	// Changes of endpoints in a second.
	scaleChanges = 50
	// scaleNetwork has the endpoints. All its addresses are the node's own.
	scaleNetwork = "10.90.0.0/16"
)

var changing = flag.Duration("changing", 10*time.Second,
	"for how long endpoints of the large cluster change")

// A thousand listeners with a route each and ten thousand endpoints, of which fifty a second come
// and go, cost no session anything, and nothing grows by it. How long everything takes is printed.
func TestScale(t *testing.T) {
	c := withRingway(t)
	must(t, ip("route add local "+scaleNetwork+" dev lo"))
	port := serveScale(t)
	namespace := newNamespace(t)
	began := time.Now()
	makeScale(t, namespace, port)
	made := time.Now()
	addresses := scaleProgrammed(t, namespace)
	t.Logf("%d listeners and routes, %d endpoints: made in %.1f s, programmed %.1f s after that",
		scaleListeners, scaleServices*scaleEndpoints, made.Sub(began).Seconds(),
		time.Since(made).Seconds())

	pid := c.ringways[0].process.cmd.Process.Pid
	load := scaleLoad(t, addresses)
	health := watchHealth()
	before, cpu, memory := figures(t), controlTicks(t, pid), anonymous(t, pid)
	start := time.Now()
	changed := changeEndpoints(t, namespace, *changing)
	took := time.Since(start).Seconds()
	after, memoryAfter := figures(t), anonymous(t, pid)
	tables := after["ringway_table_generation"] - before["ringway_table_generation"]
	t.Logf("%.1f changes a second for %.0f s: %.1f tables a second, %.0f %% of a core for them",
		float64(changed)/took, took, tables/took, float64(controlTicks(t, pid)-cpu)/took)
	t.Logf("a table: translated in %.1f ms, compiled in %.1f ms, published in %.1f ms, "+
		"taken over by a worker in %.2f ms (at most %.2f ms)",
		after["ringway_kubernetes_translate_seconds"]*1e3,
		after["ringway_table_compile_seconds"]*1e3, after["ringway_table_publish_seconds"]*1e3,
		after["ringway_table_apply_seconds"]*1e3, after["ringway_table_apply_seconds_max"]*1e3)
	t.Logf("workers' turns: 99 %% within %s", turns(before, after, 0.99))
	t.Logf("memory of its own: %d MB before, %d MB after", memory>>10, memoryAfter>>10)
	answers, err := health()
	if err != nil {
		t.Errorf("/healthz: %v", err)
	}
	t.Logf("answers of /healthz: %s", spread(answers))
	trips, err := load.end()
	if err != nil {
		t.Errorf("sessions were lost: %v", err)
	}
	t.Logf("round trips of sessions: %s", spread(trips))
	if tables < 1 {
		t.Error("no new table: the test shows nothing")
	}
	if memoryAfter > memory+memory/2+(32<<10) {
		t.Errorf("it has grown from %d to %d KB", memory, memoryAfter)
	}

	// What it all comes to is in force: the only endpoint left of a Service gets all its sessions.
	only := fmt.Sprintf(`[{"op":"replace","path":"/endpoints","value":[{"addresses":["%s"]}]}]`,
		scaleAddress(0, scaleEndpoints))
	must(t, patchSlice(namespace, 0, only))
	eventually(t, "the last change in force", func() error {
		at, err := scaleGreeting(addresses[0])
		if err == nil && at != scaleAddress(0, scaleEndpoints) {
			err = fmt.Errorf("a session has reached %s", at)
		}
		return err
	})
}

// serveScale answers at all addresses of the network: with the address that was reached, once, and
// then each line with itself.
func serveScale(t *testing.T) int {
	t.Helper()
	listener, err := net.Listen("tcp", ":0")
	must(t, err)
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				host, _, _ := net.SplitHostPort(conn.LocalAddr().String())
				fmt.Fprintln(conn, strings.TrimPrefix(host, "::ffff:"))
				_, _ = io.Copy(conn, conn)
			}()
		}
	}()
	return listener.Addr().(*net.TCPAddr).Port
}

func scaleAddress(service, endpoint int) string {
	return fmt.Sprintf("10.90.%d.%d", service, endpoint+1)
}

// makeScale makes everything at once: Gateways with their listeners, and the Services first.
func makeScale(t *testing.T, namespace string, port int) {
	t.Helper()
	var group errgroup.Group
	group.SetLimit(8)
	apply := func(text string) { group.Go(func() error { return applyTo(namespace, text) }) }
	for service := range scaleServices {
		endpoints := make([]string, scaleEndpoints)
		for i := range endpoints {
			endpoints[i] = fmt.Sprintf(
				`{addresses: ["%s"], conditions: {ready: true}}`, scaleAddress(service, i))
		}
		apply(fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: s%[1]d}
spec: {clusterIP: None, ports: [{name: echo, port: 3000}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: s%[1]d, labels: {kubernetes.io/service-name: s%[1]d}}
addressType: IPv4
ports: [{name: echo, port: %[2]d}]
endpoints: [%[3]s]
`, service, port, strings.Join(endpoints, ", ")))
	}
	for gateway := range scaleGateways {
		var listeners []string
		for i := gateway; i < scaleListeners; i += scaleGateways {
			listeners = append(listeners, listener(fmt.Sprintf("l%d", i), "TCP", 20000+i))
		}
		apply(fmt.Sprintf(`
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: g%d}
spec: {gatewayClassName: %s, listeners: [%s]}
`, gateway, className, strings.Join(listeners, ", ")))
	}
	for i := range scaleListeners {
		apply(route("TCPRoute", fmt.Sprintf("r%d", i), fmt.Sprintf("g%d", i%scaleGateways),
			fmt.Sprintf("l%d", i), backend(fmt.Sprintf("s%d", i%scaleServices), 1)))
	}
	must(t, group.Wait())
}

// scaleProgrammed waits until all is in force, and returns where each listener is.
func scaleProgrammed(t *testing.T, namespace string) []string {
	t.Helper()
	hosts := make([]string, scaleGateways)
	for i := range hosts {
		hosts[i] = programmed(t, namespace, fmt.Sprintf("g%d", i))
	}
	addresses := make([]string, scaleListeners)
	for i := range addresses {
		addresses[i] = net.JoinHostPort(hosts[i%scaleGateways], strconv.Itoa(20000+i))
	}
	eventually(t, "sessions through every listener", func() error {
		var group errgroup.Group
		group.SetLimit(50)
		for _, address := range addresses {
			group.Go(func() error {
				_, err := scaleGreeting(address)
				return err
			})
		}
		return group.Wait()
	})
	eventually(t, "routes accepted", func() error {
		for i := range scaleListeners {
			if err := routeHas(namespace, fmt.Sprintf("r%d", i), "Accepted"); err != nil {
				return err
			}
		}
		return nil
	})
	return addresses
}

func scaleGreeting(address string) (string, error) {
	conn, err := net.DialTimeout("tcp", address, patience)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	text, err := bufio.NewReader(conn).ReadString('\n')
	return strings.TrimSpace(text), err
}

// A pinger has sessions, and times their round trips.
type pinger struct {
	stop  chan struct{}
	group errgroup.Group

	mu    sync.Mutex
	trips []time.Duration
}

// scaleLoad opens sessions through some of the listeners and keeps them busy.
func scaleLoad(t *testing.T, addresses []string) *pinger {
	t.Helper()
	p := &pinger{stop: make(chan struct{})}
	for i := range scaleSessions {
		conn, err := net.DialTimeout("tcp", addresses[i*len(addresses)/scaleSessions], patience)
		must(t, err)
		p.group.Go(func() error {
			defer conn.Close()
			return p.ping(conn)
		})
	}
	return p
}

func (p *pinger) ping(conn net.Conn) error {
	reader := bufio.NewReader(conn)
	if _, err := reader.ReadString('\n'); err != nil {
		return err
	}
	var trips []time.Duration
	for {
		began := time.Now()
		if err := conn.SetDeadline(began.Add(patience)); err != nil {
			return err
		}
		if _, err := io.WriteString(conn, "ping\n"); err != nil {
			return err
		}
		if _, err := reader.ReadString('\n'); err != nil {
			return err
		}
		trips = append(trips, time.Since(began))
		select {
		case <-p.stop:
			p.mu.Lock()
			defer p.mu.Unlock()
			p.trips = append(p.trips, trips...)
			return nil
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (p *pinger) end() ([]time.Duration, error) {
	close(p.stop)
	err := p.group.Wait()
	return p.trips, err
}

// changeEndpoints takes endpoints away and brings them back, each Service's in turn, and returns
// how many changes there were.
func changeEndpoints(t *testing.T, namespace string, duration time.Duration) int {
	t.Helper()
	var group errgroup.Group
	group.SetLimit(8)
	tick := time.NewTicker(time.Second / scaleChanges)
	defer tick.Stop()
	count := 0
	for end := time.Now().Add(duration); time.Now().Before(end); count++ {
		<-tick.C
		service, nth := count%scaleServices, count/scaleServices
		patch := fmt.Sprintf(`[{"op":"replace","path":"/endpoints/%d/conditions/ready","value":%t}]`,
			nth/2%scaleEndpoints, nth%2 == 1)
		group.Go(func() error { return patchSlice(namespace, service, patch) })
	}
	must(t, group.Wait())
	return count
}

func patchSlice(namespace string, service int, patch string) error {
	slice := &discoveryv1.EndpointSlice{}
	slice.Namespace, slice.Name = namespace, fmt.Sprintf("s%d", service)
	return the.client.Patch(context.Background(), slice,
		client.RawPatch(types.JSONPatchType, []byte(patch)))
}

// admin fails where an answer does not come.
var admin = http.Client{Timeout: patience}

// watchHealth asks for /healthz until the function that it returns is called, which returns how long
// the answers took.
func watchHealth() func() ([]time.Duration, error) {
	stop := make(chan struct{})
	var times []time.Duration
	var group errgroup.Group
	group.Go(func() error {
		for {
			began := time.Now()
			response, err := admin.Get("http://" + nodeAddress + ":9900/healthz")
			if err != nil {
				return err
			}
			response.Body.Close()
			if response.StatusCode != http.StatusOK {
				return fmt.Errorf("status %s", response.Status)
			}
			times = append(times, time.Since(began))
			select {
			case <-stop:
				return nil
			case <-time.After(20 * time.Millisecond):
			}
		}
	})
	return func() ([]time.Duration, error) {
		close(stop)
		err := group.Wait()
		return times, err
	}
}

// turns is the bound, of those that the metrics have, below which a share of the turns of all
// workers were between two readings of them.
func turns(before, after map[string]float64, share float64) string {
	const name = "ringway_worker_turn_seconds"
	all := after[name+"_count"] - before[name+"_count"]
	for _, bound := range []string{"0.0001", "0.00025", "0.0005", "0.001", "0.0025", "0.005", "0.01"} {
		bucket := name + `_bucket{le="` + bound + `"}`
		if after[bucket]-before[bucket] >= share*all {
			return fmt.Sprintf("%s s, of %.0f that were timed", bound, all)
		}
	}
	return "more than 0.01 s"
}

func spread(times []time.Duration) string {
	if len(times) == 0 {
		return "none"
	}
	slices.Sort(times)
	at := func(share float64) float64 {
		return times[int(share*float64(len(times)-1))].Seconds() * 1e3
	}
	return fmt.Sprintf("%d, median %.2f ms, 99 %% within %.2f ms, at most %.2f ms",
		len(times), at(0.5), at(0.99), at(1))
}

var sample = regexp.MustCompile(`(?m)^(ringway_\w+)(?:\{([^}]*)\})? (\S+)$`)
var bucketBound = regexp.MustCompile(`le="[^"]*"`)

// figures reads the metrics page: of each name the highest value, whatever its labels; of
// histograms the sum, by the buckets' bounds.
func figures(t *testing.T) map[string]float64 {
	t.Helper()
	response, err := admin.Get("http://" + nodeAddress + ":9900/metrics")
	must(t, err)
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	must(t, err)
	found := map[string]float64{}
	for _, match := range sample.FindAllStringSubmatch(string(text), -1) {
		value, err := strconv.ParseFloat(match[3], 64)
		must(t, err)
		name := match[1]
		switch {
		case strings.HasSuffix(name, "_bucket"):
			found[name+"{"+bucketBound.FindString(match[2])+"}"] += value
		case strings.HasSuffix(name, "_count"):
			found[name] += value
		default:
			found[name] = max(found[name], value)
		}
	}
	return found
}

// controlTicks is how long the threads of a Ringway that are no workers have computed, in ticks of
// which a core has 100 a second.
func controlTicks(t *testing.T, pid int) (ticks int) {
	t.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	must(t, err)
	for _, file := range threads {
		text, err := os.ReadFile(file)
		if err != nil {
			// It has ended.
			continue
		}
		_, fields, _ := strings.Cut(string(text), ") ")
		if worker.Match(text) {
			continue
		}
		for _, field := range strings.Fields(fields)[11:13] {
			more, err := strconv.Atoi(field)
			must(t, err)
			ticks += more
		}
	}
	return ticks
}

var worker = regexp.MustCompile(`^\d+ \(ringway-\d+\)`)

// anonymous is how many kilobytes of its own a process has.
func anonymous(t *testing.T, pid int) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	must(t, err)
	match := regexp.MustCompile(`Anonymous:\s+(\d+) kB`).FindSubmatch(text)
	if match == nil {
		t.Fatalf("no Anonymous in %s", text)
	}
	size, err := strconv.Atoi(string(match[1]))
	must(t, err)
	return size
}
