// Prints what the Gateway API's CRDs allow in the kinds that Ringway reads from files. The CRDs are
// those of the module that the conformance suite belongs to, of the experimental channel, because
// that has every kind and field:
//
//	cd tests && go run ./schemas >../config-sync/src/gateway/objects/gateway-api.json
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"sigs.k8s.io/yaml"
)

const (
	module  = "sigs.k8s.io/gateway-api"
	channel = "config/crd/experimental"
	made    = "cd tests && go run ./schemas >../config-sync/src/gateway/objects/gateway-api.json"
)

// kinds are those that Ringway reads.
var kinds = []string{
	"BackendTLSPolicy", "Gateway", "GatewayClass", "HTTPRoute", "ListenerSet", "ReferenceGrant",
	"TCPRoute", "TLSRoute", "UDPRoute", "XBackend",
}

// keep are the keywords that Ringway checks, and the defaults that rules see.
var keep = []string{
	"default", "enum", "format", "maxItems", "maxLength", "maxProperties", "maximum", "minItems", "minLength",
	"minProperties", "minimum", "pattern", "type",
}

// leave are the keywords that Ringway does not check. oneOf says only that an address of the type
// IPAddress is an IP address, and Ringway has that check in its code. Of list-map-keys Ringway checks
// those for which there is a rule, too.
var leave = []string{
	"description", "oneOf", "x-kubernetes-list-map-keys", "x-kubernetes-list-type",
	"x-kubernetes-map-type",
}

// rules is the keyword of rules in the Common Expression Language. Ringway keeps the rules but for
// those that ask what the object was before, or ask a function that Ringway has not; and but for the
// one on the names of listeners, because Ringway's own fault says which two have one name.
const rules = "x-kubernetes-validations"

var unasked = []string{
	"oldSelf", "format.", "duration(", "self.exists_one(l2, l1.name == l2.name)",
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "schemas:", err)
		os.Exit(1)
	}
}

func run() error {
	text, err := exec.Command("go", "list", "-m", "-json", module).Output()
	if err != nil {
		return fmt.Errorf("go list: %w", err)
	}
	var of struct{ Version, Dir string }
	if err := json.Unmarshal(text, &of); err != nil {
		return err
	}
	if of.Dir == "" {
		return fmt.Errorf("%s is not there: go mod download %s", module, module)
	}
	definitions, err := read(filepath.Join(of.Dir, channel))
	if err != nil {
		return err
	}
	head := []struct{ key, value string }{
		{"source", fmt.Sprintf("%s %s, %s", module, of.Version, channel)},
		{"licence", "Apache-2.0, Copyright The Kubernetes Authors"},
		{"made by", made},
		{"left out", fmt.Sprintf("metadata, status, the keywords %v, and rules with %v", leave, unasked)},
	}
	for at, line := range head {
		before := ","
		if at == 0 {
			before = "{"
		}
		fmt.Printf("%s\n%s: %s", before, compact(line.key), compact(line.value))
	}
	fmt.Printf(",\n%s: ", compact("kinds"))
	write(definitions, 3)
	fmt.Println("\n}")
	return nil
}

// read reads the schemas of a folder of CRDs, by group, kind and version. Where two versions of a
// kind have one schema, the later one in the file is the name of the other.
func read(folder string) (map[string]any, error) {
	files, err := filepath.Glob(filepath.Join(folder, "*.networking.*.yaml"))
	if err != nil {
		return nil, err
	}
	groups, found := map[string]any{}, 0
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		crd := &apiextensionsv1.CustomResourceDefinition{}
		if err := yaml.Unmarshal(text, crd); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		group, kind := crd.Spec.Group, crd.Spec.Names.Kind
		if !slices.Contains(kinds, kind) {
			continue
		}
		found++
		versions := map[string]any{}
		for _, version := range crd.Spec.Versions {
			schema, err := definition(version.Schema.OpenAPIV3Schema)
			if err != nil {
				return nil, fmt.Errorf("%s %s: %w", kind, version.Name, err)
			}
			versions[version.Name] = schema
			for _, other := range crd.Spec.Versions {
				if other.Name == version.Name {
					break
				}
				if compact(versions[other.Name]) == compact(schema) {
					versions[version.Name] = other.Name
					break
				}
			}
		}
		if groups[group] == nil {
			groups[group] = map[string]any{}
		}
		groups[group].(map[string]any)[kind] = versions
	}
	if found != len(kinds) {
		return nil, fmt.Errorf("%s has %d of the kinds %v", folder, found, kinds)
	}
	return groups, nil
}

// definition is the schema of a whole object. The API server has its own rules for metadata, and
// nobody writes a status into a file.
func definition(of *apiextensionsv1.JSONSchemaProps) (map[string]any, error) {
	var schema map[string]any
	if err := json.Unmarshal([]byte(compact(of)), &schema); err != nil {
		return nil, err
	}
	properties := schema["properties"].(map[string]any)
	for _, name := range []string{"apiVersion", "kind", "metadata", "status"} {
		properties[name] = map[string]any{}
	}
	return strip(schema)
}

// strip keeps what Ringway checks. What is neither kept nor left out is an error, so that a new
// release of the CRDs brings no rule that nobody has looked at.
func strip(schema map[string]any) (map[string]any, error) {
	kept := map[string]any{}
	for key, value := range schema {
		switch {
		case key == "properties":
			properties := map[string]any{}
			for name, of := range value.(map[string]any) {
				property, err := strip(of.(map[string]any))
				if err != nil {
					return nil, fmt.Errorf("%s: %w", name, err)
				}
				properties[name] = property
			}
			kept[key] = properties
		case key == "items" || key == "additionalProperties":
			of, err := strip(value.(map[string]any))
			if err != nil {
				return nil, fmt.Errorf("%s: %w", key, err)
			}
			kept[key] = of
		case key == "required":
			if required := withoutDefaults(value.([]any), schema); len(required) > 0 {
				kept[key] = required
			}
		case slices.Contains(keep, key):
			kept[key] = value
		case key == rules:
			if asked := ask(value.([]any)); len(asked) > 0 {
				kept[key] = asked
			}
		case !slices.Contains(leave, key):
			return nil, fmt.Errorf("the keyword %s is new", key)
		}
	}
	return kept, nil
}

// ask keeps the text and the message of the rules that Ringway asks.
func ask(given []any) []any {
	var asked []any
	for _, rule := range given {
		rule := rule.(map[string]any)
		text := rule["rule"].(string)
		isOut := func(word string) bool { return strings.Contains(text, word) }
		if !slices.ContainsFunc(unasked, isOut) {
			asked = append(asked, map[string]any{"rule": text, "message": rule["message"]})
		}
	}
	return asked
}

// withoutDefaults leaves out the properties that need not be given, because they have defaults.
func withoutDefaults(required []any, schema map[string]any) []any {
	properties := schema["properties"].(map[string]any)
	return slices.DeleteFunc(required, func(name any) bool {
		_, has := properties[name.(string)].(map[string]any)["default"]
		return has
	})
}

// write prints a tree with a line for each key of its upper levels.
func write(value any, levels int) {
	tree, is := value.(map[string]any)
	if !is || levels == 0 {
		fmt.Print(compact(value))
		return
	}
	for at, key := range slices.Sorted(maps.Keys(tree)) {
		before := ","
		if at == 0 {
			before = "{"
		}
		fmt.Printf("%s\n%s: ", before, compact(key))
		write(tree[key], levels-1)
	}
	fmt.Print("\n}")
}

func compact(value any) string {
	text := &bytes.Buffer{}
	encoder := json.NewEncoder(text)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		panic(err)
	}
	return string(bytes.TrimSpace(text.Bytes()))
}
