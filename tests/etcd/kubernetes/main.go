// The storage layer of Kubernetes' API server, as it is published, against one member with mutual TLS and authentication: the
// server's certificate names its user, who has a role for what begins with /registry/. Each test is a function that fails with a
// message.
//
// The program prints one line a test, `ok NAME` or `FAILED NAME: WHY`, and ends with 1 if one failed. A test that needs the
// member killed or started writes `kill 0` or `start 0` and waits for a line on standard input: the member is a process of its
// caller.
package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	"k8s.io/apiserver/pkg/storage/storagebackend/factory"
	"k8s.io/klog/v2"
)

const (
	// Patience bounds each test: generous, for a loaded machine and a debug build.
	patience = 2 * time.Minute
	// The user of the API server, which its certificate names, and its role.
	apiserver = "kube-apiserver"
	resource  = "configmaps"
)

// A T is what one test gets.
type T struct {
	ctx context.Context
	// Where the member is, and the folder with certificates.
	endpoint, certificates string
	// All objects of the test are in this namespace.
	namespace string
	// Whether the member ends watches whose users lose their rights, as etcd does not.
	watchesEnd bool
	ends       []func()
}

// A failure is what a test panics with.
type failure string

type test struct {
	name string
	run  func(*T)
}

func fail(format string, args ...any) {
	panic(failure(fmt.Sprintf(format, args...)))
}

func check(doing string, err error) {
	if err != nil {
		fail("%s: %v", doing, err)
	}
}

// Must gives the value of a call that succeeds.
func must[V any](value V, err error) V {
	check(fmt.Sprintf("for %T", value), err)
	return value
}

func equal(what string, got, want any) {
	if !reflect.DeepEqual(got, want) {
		fail("%s: got %#v, want %#v", what, got, want)
	}
}

func holds(what string, is bool) {
	if !is {
		fail("not so: %s", what)
	}
}

// Refused checks that a call fails in a way that the API server recognises.
func refused(what string, err error, as func(error) bool) {
	if err == nil || !as(err) {
		fail("%s: got error %v", what, err)
	}
}

// Saying makes a condition of an error's text.
func saying(want error) func(error) bool {
	return func(err error) bool { return err.Error() == want.Error() }
}

// Until asks again and again until it is so.
func (t *T) until(what string, is func() bool) {
	for !is() {
		select {
		case <-t.ctx.Done():
			fail("never: %s", what)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

var (
	scheme = runtime.NewScheme()
	// The form in which Kubernetes stores its objects.
	codec runtime.Codec
)

func init() {
	metav1.AddToGroupVersion(scheme, metav1.SchemeGroupVersion)
	utilruntime.Must(corev1.AddToScheme(scheme))
	codecs := serializer.NewCodecFactory(scheme)
	binary := protobuf.NewSerializer(scheme, scheme)
	versions := schema.GroupVersions{corev1.SchemeGroupVersion}
	codec = codecs.CodecForVersions(binary, binary, versions, versions)
}

func newObject() runtime.Object { return &corev1.ConfigMap{} }
func newList() runtime.Object   { return &corev1.ConfigMapList{} }

func (t *T) file(name string) string { return filepath.Join(t.certificates, name) }

// Config is that of an API server which shows the certificate with this name; without compaction.
func (t *T) config(name string) storagebackend.ConfigForResource {
	config := storagebackend.NewDefaultConfig("/registry", codec)
	config.CompactionInterval = 0
	config.Transport.ServerList = []string{t.endpoint}
	config.Transport.CertFile = t.file(name + ".pem")
	config.Transport.KeyFile = t.file(name + "-key.pem")
	config.Transport.TrustedCAFile = t.file("ca.pem")
	return *config.ForResource(schema.GroupResource{Resource: resource})
}

// Storage is what the API server reads and writes one resource with.
func (t *T) storage(config storagebackend.ConfigForResource) storage.Interface {
	made, destroy, err := factory.Create(config, newObject, newList, "/"+resource)
	check("storage", err)
	t.ends = append(t.ends, destroy)
	return made
}

func (t *T) store() storage.Interface { return t.storage(t.config(apiserver)) }

// Client is etcd's own, with the certificate that has this name.
func (t *T) client(name string) *clientv3.Client {
	info := transport.TLSInfo{
		CertFile: t.file(name + ".pem"), KeyFile: t.file(name + "-key.pem"), TrustedCAFile: t.file("ca.pem"),
	}
	client := must(clientv3.New(clientv3.Config{
		Endpoints: []string{t.endpoint}, TLS: must(info.ClientConfig()), DialTimeout: 10 * time.Second, Logger: zap.NewNop(),
	}))
	t.ends = append(t.ends, func() { _ = client.Close() })
	return client
}

func (t *T) key(name string) string { return "/" + resource + "/" + t.namespace + "/" + name }

// All is the key of what the test has made.
func (t *T) all() string { return "/" + resource + "/" + t.namespace }

func (t *T) object(name string, data map[string]string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: t.namespace}, Data: data}
}

// Make creates an object and gives it as it was stored.
func (t *T) make(store storage.Interface, name string, data map[string]string) *corev1.ConfigMap {
	out := &corev1.ConfigMap{}
	check("create "+name, store.Create(t.ctx, t.key(name), t.object(name, data), out, 0))
	return out
}

// MakeMany creates numbered objects, several at a time.
func (t *T) makeMany(store storage.Interface, count int, value string) {
	work, errs := make(chan int), make(chan error, count)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for n := range work {
				name := fmt.Sprintf("o%04d", n)
				errs <- store.Create(t.ctx, t.key(name), t.object(name, map[string]string{"v": value}), nil, 0)
			}
		})
	}
	for n := range count {
		work <- n
	}
	close(work)
	all.Wait()
	close(errs)
	for err := range errs {
		check("create one of many", err)
	}
}

var input = bufio.NewReader(os.Stdin)

// Tell asks the caller for something and waits until it is done.
func tell(what string) {
	fmt.Printf("%s 0\n", what)
	_ = must(input.ReadString('\n'))
}

func run(one test, base T) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t := base
	t.ctx, t.namespace = ctx, one.name
	defer func() {
		found := recover()
		cancel()
		for n := range t.ends {
			t.ends[len(t.ends)-1-n]()
		}
		switch found := found.(type) {
		case nil:
		case failure:
			err = fmt.Errorf("%s", string(found))
		default:
			panic(found)
		}
	}()
	one.run(&t)
	return nil
}

func main() {
	endpoint := flag.String("endpoint", "", "where the member is")
	certificates := flag.String("certificates", "", "the folder with the certificates of root, kube-apiserver and stranger")
	watchesEnd := flag.Bool("watches-end", false, "watches end with the rights of their users")
	only := flag.String("run", "", "run only tests whose name matches")
	flag.Parse()
	// The storage layer logs what it retries; the tests look at what it answers.
	klog.SetLogger(logr.Discard())
	base := T{endpoint: *endpoint, certificates: *certificates, watchesEnd: *watchesEnd}
	wanted := regexp.MustCompile(*only)
	failed := 0
	// In the order in which they run: the first makes the user that the others are.
	for _, one := range tests {
		if !wanted.MatchString(one.name) {
			continue
		}
		if err := run(one, base); err != nil {
			failed++
			fmt.Printf("FAILED %s: %v\n", one.name, err)
		} else {
			fmt.Printf("ok %s\n", one.name)
		}
	}
	if failed != 0 {
		os.Exit(1)
	}
}
