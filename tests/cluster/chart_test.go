package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"
)

// every is what a cluster may want of the chart in the node's network.
var every = []string{
	"namespace.create=true", "nodeProfile.create=true", "priorityClass.create=true",
	"priorityClass.name=gateways", "serviceMonitor.create=true", "prometheusRule.create=true",
	"dashboard.create=true", "addressPool={192.0.2.0/24,2001:db8::/64}",
	"namespaces={shop}", "externalNames=true", "controllerName=example.com/edge",
	"imagePullSecrets[0].name=registry", "podLabels.team=edge", "podAnnotations.a=b",
	"adminSocket.create=true",
}

// behind is what it may want of a Deployment behind a Service.
var behind = []string{
	"kind=Deployment", "autoscaling.create=true", "service.create=true",
	"service.ports[0].name=postgres", "service.ports[0].port=5432",
	"service.ports[0].protocol=TCP", "service.ports[1].name=dns", "service.ports[1].port=53",
	"service.ports[1].targetPort=5353", "service.ports[1].protocol=UDP",
	"networkPolicy.create=true",
	"networkPolicy.adminFrom[0].namespaceSelector.matchLabels.name=monitoring",
}

// The chart without values is what kustomize makes, so whoever installs one may change to the other.
func TestChartIsTheKustomization(t *testing.T) {
	rendered := objectsOf(t, "ringway-system", "namespace.create=true", "nodeProfile.create=true",
		"image.repository=ringway")
	wanted, err := the.kustomization()
	must(t, err)
	profile, err := os.ReadFile(filepath.Join(the.manifests, "node-profile", "daemonset.yaml"))
	must(t, err)
	more, err := parse(profile)
	must(t, err)
	// The kustomization of the profile gives it the namespace.
	more[0].SetNamespace("ringway-system")
	wanted = append(wanted, more...)

	for _, want := range wanted {
		at := slices.IndexFunc(rendered, func(object *unstructured.Unstructured) bool {
			return object.GetKind() == want.GetKind() && object.GetName() == want.GetName()
		})
		if at < 0 {
			t.Errorf("the chart has no %s %s", want.GetKind(), want.GetName())
			continue
		}
		got, expected := plain(t, rendered[at]), plain(t, want)
		if got != expected {
			t.Errorf("%s %s: the chart has\n%s\nand the kustomization\n%s",
				want.GetKind(), want.GetName(), got, expected)
		}
		rendered = slices.Delete(rendered, at, at+1)
	}
	for _, object := range rendered {
		// Kustomize generates this one of a file.
		if object.GetKind() != "ConfigMap" || object.GetName() != "ringway-seccomp" {
			t.Errorf("only the chart has %s %s", object.GetKind(), object.GetName())
			continue
		}
		file, err := os.ReadFile(filepath.Join(the.manifests, "node-profile", "ringway.json"))
		must(t, err)
		got, _, err := unstructured.NestedString(object.Object, "data", "ringway.json")
		must(t, err)
		if strings.TrimSpace(got) != strings.TrimSpace(string(file)) {
			t.Error("the profiles differ")
		}
	}
}

// The API server takes every object: each field is one of its kind, and each value is allowed.
func TestChartIsAccepted(t *testing.T) {
	namespace := newNamespace(t)
	for name, values := range map[string][]string{
		"default": nil, "every": every, "behind": behind,
		"host": {"kind=Deployment", "hostNetwork=true", "service.create=false"},
	} {
		t.Run(name, func(t *testing.T) {
			kinds := map[string]bool{}
			for _, object := range objectsOf(t, namespace, values...) {
				kinds[object.GetKind()] = true
				// The Prometheus operator's kinds are not installed.
				if strings.HasPrefix(object.GetAPIVersion(), "monitoring.coreos.com/") {
					continue
				}
				sent := client.ApplyConfigurationFromUnstructured(object)
				err := the.client.Apply(t.Context(), sent, client.FieldOwner("helm"),
					client.ForceOwnership, client.DryRunAll)
				if err != nil {
					t.Errorf("%s %s: %v", object.GetKind(), object.GetName(), err)
				}
			}
			wanted := map[string][]string{
				"every": {"DaemonSet", "PriorityClass", "ServiceMonitor", "PrometheusRule"},
				"behind": {"Deployment", "HorizontalPodAutoscaler", "NetworkPolicy",
					"PodDisruptionBudget"},
			}
			for _, kind := range wanted[name] {
				if !kinds[kind] {
					t.Errorf("no %s in %v", kind, kinds)
				}
			}
		})
	}
}

// Pods with addresses of their own are renewed by a new one beside the old one. In the node's network
// both would need the same addresses, so the old one ends first.
func TestChartRollsOut(t *testing.T) {
	for _, of := range []struct {
		values, strategy   []string
		unavailable, surge string
	}{
		{nil, []string{"spec", "updateStrategy"}, "1", "0"},
		{[]string{"maxUnavailable=3"}, []string{"spec", "updateStrategy"}, "3", "0"},
		{[]string{"kind=Deployment"}, []string{"spec", "strategy"}, "0", "1"},
		{[]string{"kind=Deployment", "hostNetwork=true"}, []string{"spec", "strategy"}, "1", "0"},
	} {
		objects := objectsOf(t, "ringway-system", of.values...)
		at := slices.IndexFunc(objects, func(object *unstructured.Unstructured) bool {
			return object.GetKind() == "DaemonSet" || object.GetKind() == "Deployment"
		})
		if at < 0 {
			t.Fatalf("%v: no workload", of.values)
		}
		rolling, _, err := unstructured.NestedMap(objects[at].Object,
			append(of.strategy, "rollingUpdate")...)
		must(t, err)
		got := [2]string{fmt.Sprint(rolling["maxUnavailable"]), fmt.Sprint(rolling["maxSurge"])}
		if got != [2]string{of.unavailable, of.surge} {
			t.Errorf("%v: unavailable and surge are %v", of.values, got)
		}
	}
}

func TestChartIsValid(t *testing.T) {
	for _, chart := range []string{chart(), packed(t)} {
		if _, said, err := helm(t, "lint", "--strict", chart); err != nil {
			t.Fatalf("%s: %v\n%s", chart, err, said)
		}
	}
	// What would be applied and not work is refused, with the value's name.
	for values, reason := range map[string]string{
		"kinds=DaemonSet":                                "kinds",
		"kind=StatefulSet":                               "kind",
		"image.tagg=1":                                   "tagg",
		"addressPool={192.0.2.1}":                        "addressPool",
		"networkPolicy.create=true":                      "networkPolicy.create",
		"autoscaling.create=true":                        "autoscaling.create",
		"service.create=true":                            "service.create",
		"serviceMonitor.interval=never":                  "interval",
		"adminSocket.create=true,config=drain_timeout=1": "adminSocket.create",
	} {
		_, said, err := helm(t, "template", "ringway", chart(), "--set", values)
		if err == nil || !strings.Contains(said, reason) {
			t.Errorf("%s: %v\n%s", values, err, said)
		}
	}
}

// A release of an older chart becomes one of the chart that images/release makes, without an object
// that has to be made anew. There is no older release yet, so the older chart differs by its version
// and its values.
func TestChartIsUpgraded(t *testing.T) {
	older := t.TempDir()
	_, said, err := helm(t, "package", "--version", "0.0.1", "--app-version", "0.0.1",
		"--destination", older, chart())
	if err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	for kind, values := range map[string][]string{
		"DaemonSet":  {"nodeProfile.create=true", "priorityClass.create=true"},
		"Deployment": behind,
	} {
		t.Run(kind, func(t *testing.T) {
			namespace, name := newNamespace(t), "upgraded-"+strings.ToLower(kind)
			release := func(chart string, more ...string) {
				t.Helper()
				words := []string{"upgrade", "--install", name, chart, "--namespace", namespace,
					// Another test may have applied the definition of L4Policy.
					"--take-ownership"}
				more = append(more, "gatewayClass.name="+name, "priorityClass.name="+name,
					"controllerName=example.com/"+name)
				for _, value := range append(more, values...) {
					words = append(words, "--set", value)
				}
				if _, said, err := helm(t, words...); err != nil {
					t.Fatalf("%v\n%s", err, said)
				}
			}
			workload := &unstructured.Unstructured{}
			workload.SetAPIVersion("apps/v1")
			workload.SetKind(kind)
			read := func() (uid, image string) {
				t.Helper()
				must(t, the.client.Get(t.Context(), key(namespace, name), workload))
				fields := []string{"spec", "template", "spec", "containers"}
				containers, _, err := unstructured.NestedSlice(workload.Object, fields...)
				must(t, err)
				return string(workload.GetUID()), containers[0].(map[string]any)["image"].(string)
			}
			release(filepath.Join(older, "ringway-0.0.1.tgz"))
			before, image := read()
			if !strings.HasSuffix(image, ":0.0.1") {
				t.Fatalf("installed with the image %s", image)
			}
			release(packed(t), "terminationGracePeriodSeconds=90", "podLabels.team=edge")
			after, image := read()
			if strings.HasSuffix(image, ":0.0.1") || before != after {
				t.Fatalf("upgraded with the image %s, as %s in place of %s", image, after, before)
			}
			if _, said, err := helm(t, "uninstall", name, "--namespace", namespace); err != nil {
				t.Fatalf("%v\n%s", err, said)
			}
			err := the.client.Get(t.Context(), key(namespace, name), workload)
			if !apierrors.IsNotFound(err) && workload.GetDeletionTimestamp() == nil {
				t.Errorf("after the end of the release: %v", err)
			}
			definition := &apiextensionsv1.CustomResourceDefinition{}
			must(t, the.client.Get(t.Context(), key("", "l4policies.ringway.dev"), definition))
		})
	}
}

func TestChartHasTheVersion(t *testing.T) {
	workspace, err := os.ReadFile(filepath.Join(the.manifests, "../../Cargo.toml"))
	must(t, err)
	version := regexp.MustCompile(`(?m)^version = "(.*)"$`).FindSubmatch(workspace)
	file, err := os.ReadFile(filepath.Join(chart(), "Chart.yaml"))
	must(t, err)
	var read struct{ Version, AppVersion string }
	must(t, yaml.Unmarshal(file, &read))
	if read.Version != string(version[1]) || read.AppVersion != read.Version {
		t.Fatalf("Chart.yaml has %+v, and Cargo.toml %s", read, version[1])
	}
}

func chart() string { return filepath.Join(the.manifests, "../helm") }

// packed is the chart as images/release makes it.
func packed(t *testing.T) string {
	t.Helper()
	release := filepath.Join(the.manifests, "../release")
	command := exec.CommandContext(t.Context(), release, "--chart", "--out", t.TempDir())
	var errs bytes.Buffer
	command.Stderr = &errs
	file, err := command.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, errs.String())
	}
	return strings.TrimSpace(string(file))
}

// objectsOf renders the chart.
func objectsOf(t *testing.T, namespace string, values ...string) []*unstructured.Unstructured {
	t.Helper()
	words := []string{"template", "ringway", chart(), "--namespace", namespace}
	for _, value := range values {
		words = append(words, "--set", value)
	}
	text, said, err := helm(t, words...)
	if err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	objects, err := parse(text)
	must(t, err)
	return objects
}

// helm runs Helm with nothing of this user's, and returns what it printed and all that it said.
func helm(t *testing.T, words ...string) ([]byte, string, error) {
	t.Helper()
	command := exec.CommandContext(t.Context(), filepath.Join(the.bin, "helm"), words...)
	home := t.TempDir()
	command.Env = []string{"HOME=" + home, "PATH=" + os.Getenv("PATH"),
		"KUBECONFIG=" + the.kubeconfig}
	var out, errs bytes.Buffer
	command.Stdout, command.Stderr = &out, &errs
	err := command.Run()
	if errors.Is(err, os.ErrNotExist) {
		t.Fatalf("tests/run cluster builds Helm: %v", err)
	}
	return out.Bytes(), out.String() + errs.String(), err
}

// plain writes an object without what Helm's conventions and the chart add: labels, annotations,
// and the version in the image.
func plain(t *testing.T, object *unstructured.Unstructured) string {
	t.Helper()
	text, err := json.MarshalIndent(without(object.Object), "", " ")
	must(t, err)
	image := regexp.MustCompile(`("image": "ringway):[^"]*`)
	return image.ReplaceAllString(string(text), "$1")
}

func without(value any) any {
	switch value := value.(type) {
	case map[string]any:
		kept := map[string]any{}
		for key, inner := range value {
			if slices.Contains(added, key) {
				continue
			}
			inner = without(inner)
			// Labels and annotations of which nothing is left.
			if fields, is := inner.(map[string]any); is && len(fields) == 0 &&
				(key == "labels" || key == "annotations") {
				continue
			}
			kept[key] = inner
		}
		return kept
	case []any:
		var kept []any
		for _, inner := range value {
			kept = append(kept, without(inner))
		}
		return kept
	case string:
		return strings.TrimSpace(value)
	default:
		return value
	}
}

var added = []string{
	"app.kubernetes.io/name", "app.kubernetes.io/instance", "app.kubernetes.io/version",
	"app.kubernetes.io/managed-by", "helm.sh/chart", "helm.sh/resource-policy",
	"ringway.dev/config", "ringway.dev/profile",
}
