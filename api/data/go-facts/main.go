// Prints what Go's encoders know of the API's types beyond the published schema: which scalars are pointers (so that
// presence means something), which fields are shown even when they are zero, and the messages that JSON spells inline.
//
//	go run . > ../kubernetes-1.37-go.json      (with k8s.io/{api,client-go,apiextensions-apiserver,kube-aggregator} v0.37.1)
package main

import (
	"encoding/json"
	"os"
	"reflect"
	"sort"
	"strconv"
	"strings"

	_ "k8s.io/api/core/v1"
	apiextensions "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset/scheme"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"
	aggregator "k8s.io/kube-aggregator/pkg/client/clientset_generated/clientset/scheme"
)

type facts struct {
	Pointers []string         `json:"pointers,omitempty"`
	Always   []string         `json:"always,omitempty"`
	Protobuf map[string][]any `json:"protobuf,omitempty"`
}

var all = map[string]*facts{}

func name(t reflect.Type) string {
	p := t.PkgPath()
	p = strings.Replace(p, "k8s.io/", "io.k8s.", 1)
	return strings.ReplaceAll(p, "/", ".") + "." + t.Name()
}

func kind(t reflect.Type) string {
	switch t.Kind() {
	case reflect.String:
		return "string"
	case reflect.Bool:
		return "bool"
	case reflect.Int32:
		return "int32"
	case reflect.Int64, reflect.Int:
		return "int64"
	case reflect.Float64:
		return "double"
	case reflect.Pointer:
		return kind(t.Elem())
	case reflect.Map:
		return "map:" + kind(t.Elem())
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			return "bytes"
		}
		return kind(t.Elem())
	}
	return "message"
}

func scalar(t reflect.Type) bool {
	k := kind(t)
	return t.Kind() != reflect.Map && k != "message"
}

func walk(t reflect.Type, inline bool) {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice || t.Kind() == reflect.Map {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || !strings.HasPrefix(t.PkgPath(), "k8s.io/") {
		return
	}
	n := name(t)
	f := all[n]
	if f == nil {
		f = &facts{}
		all[n] = f
		fields(t, f)
	}
	if inline && f.Protobuf == nil {
		f.Protobuf = map[string][]any{}
		for i := 0; i < t.NumField(); i++ {
			sf := t.Field(i)
			j := strings.Split(sf.Tag.Get("json"), ",")
			p := strings.Split(sf.Tag.Get("protobuf"), ",")
			if j[0] == "" || len(p) < 2 {
				continue
			}
			tag, _ := strconv.Atoi(p[1])
			rep := 0
			if sf.Type.Kind() == reflect.Slice && sf.Type.Elem().Kind() != reflect.Uint8 {
				rep = 1
			}
			f.Protobuf[j[0]] = []any{tag, kind(sf.Type), rep}
		}
	}
}

func fields(t reflect.Type, f *facts) {
	for i := 0; i < t.NumField(); i++ {
		sf := t.Field(i)
		j := strings.Split(sf.Tag.Get("json"), ",")
		if j[0] == "-" {
			continue
		}
		if j[0] == "" {
			_, has := sf.Tag.Lookup("protobuf")
			walk(sf.Type, has)
			if sf.Type.Kind() == reflect.Struct && sf.Type.Name() != "TypeMeta" && sf.Type.Name() != "ListMeta" || sf.Type.Kind() == reflect.Struct && !has {
				fields(sf.Type, f)
			}
			continue
		}
		walk(sf.Type, false)
		omit := false
		for _, o := range j[1:] {
			omit = omit || o == "omitempty" || o == "omitzero"
		}
		if sf.Type.Kind() == reflect.Pointer && scalar(sf.Type.Elem()) {
			f.Pointers = append(f.Pointers, j[0])
		} else if !omit && (scalar(sf.Type) || sf.Type.Kind() == reflect.Slice || sf.Type.Kind() == reflect.Map || sf.Type.Kind() == reflect.Pointer) {
			f.Always = append(f.Always, j[0])
		}
	}
}

func main() {
	for _, s := range []*runtime.Scheme{scheme.Scheme, apiextensions.Scheme, aggregator.Scheme} {
		for _, t := range s.AllKnownTypes() {
			walk(t, false)
		}
	}
	for _, o := range []any{meta.Status{}, meta.Table{}, meta.APIGroupList{}, meta.APIResourceList{}, meta.APIVersions{}, meta.DeleteOptions{}, meta.WatchEvent{}} {
		walk(reflect.TypeOf(o), false)
	}
	var names []string
	for n, f := range all {
		if len(f.Pointers)+len(f.Always)+len(f.Protobuf) > 0 {
			sort.Strings(f.Pointers)
			sort.Strings(f.Always)
			names = append(names, n)
		}
	}
	sort.Strings(names)
	os.Stdout.WriteString("{\n")
	for i, n := range names {
		b, _ := json.Marshal(all[n])
		end := ",\n"
		if i == len(names)-1 {
			end = "\n}\n"
		}
		os.Stdout.WriteString(strconv.Quote(n) + ":" + string(b) + end)
	}
}
