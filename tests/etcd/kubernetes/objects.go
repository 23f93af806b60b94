package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/features"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/etcd3"
	etcdfeature "k8s.io/apiserver/pkg/storage/feature"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/component-base/metrics/legacyregistry"
)

// Everything lists all that is below a key, at the newest revision.
func everything() storage.ListOptions {
	return storage.ListOptions{Predicate: storage.Everything, Recursive: true}
}

// At lists what was there at a revision.
func at(revision string) storage.ListOptions {
	options := everything()
	options.ResourceVersion, options.ResourceVersionMatch = revision, metav1.ResourceVersionMatchExact
	return options
}

func names(list *corev1.ConfigMapList) string {
	var all []string
	for _, item := range list.Items {
		all = append(all, item.Name)
	}
	return strings.Join(all, " ")
}

func (t *T) list(store storage.Interface, options storage.ListOptions) *corev1.ConfigMapList {
	list := &corev1.ConfigMapList{}
	check("list", store.GetList(t.ctx, t.all(), options, list))
	return list
}

// Calls says how many calls of this method the storage layer has made that ended well.
func calls(method string) (count float64) {
	for _, family := range must(legacyregistry.DefaultGatherer.Gather()) {
		if family.GetName() != "grpc_client_handled_total" {
			continue
		}
		for _, metric := range family.GetMetric() {
			found := map[string]string{}
			for _, label := range metric.GetLabel() {
				found[label.GetName()] = label.GetValue()
			}
			if found["grpc_method"] == method && found["grpc_code"] == "OK" {
				count += metric.GetCounter().GetValue()
			}
		}
	}
	return count
}

func createAndGet(t *T) {
	store := t.store()
	made := t.make(store, "one", map[string]string{"k": "v"})
	revision := must(strconv.ParseInt(made.ResourceVersion, 10, 64))
	holds("a revision", revision > 1)
	refused("created twice", store.Create(t.ctx, t.key("one"), t.object("one", nil), nil, 0), storage.IsExist)
	refused("created with a revision", store.Create(t.ctx, t.key("two"), made.DeepCopy(), nil, 0),
		saying(storage.ErrResourceVersionSetOnCreate))
	got := &corev1.ConfigMap{}
	check("get", store.Get(t.ctx, t.key("one"), storage.GetOptions{}, got))
	equal("what is stored", got, made)
	got = &corev1.ConfigMap{}
	check("get", store.Get(t.ctx, t.key("one"), storage.GetOptions{ResourceVersion: made.ResourceVersion}, got))
	equal("not older than that", got, made)
	refused("no such object", store.Get(t.ctx, t.key("two"), storage.GetOptions{}, got), storage.IsNotFound)
	check("no such object, ignored", store.Get(t.ctx, t.key("two"), storage.GetOptions{IgnoreNotFound: true}, got))
	equal("nothing", got, &corev1.ConfigMap{})
	future := fmt.Sprint(revision + 1000)
	refused("newer than there is", store.Get(t.ctx, t.key("one"), storage.GetOptions{ResourceVersion: future}, got),
		storage.IsTooLargeResourceVersion)
	holds("the current revision", must(store.GetCurrentResourceVersion(t.ctx)) >= uint64(revision))
	// Kubernetes' marker is what stands in the store, behind the prefix.
	kept := must(t.client("root").Get(t.ctx, "/registry"+t.key("one")))
	equal("keys", len(kept.Kvs), 1)
	holds("the form of the value", strings.HasPrefix(string(kept.Kvs[0].Value), "k8s\x00"))
	equal("its revision", kept.Kvs[0].ModRevision, revision)
	large := strings.Repeat("x", 1<<20)
	equal("a large object", t.make(store, "large", map[string]string{"k": large}).Data["k"], large)
}

func lists(t *T) {
	store := t.store()
	for _, name := range []string{"a", "b", "c", "d", "e"} {
		t.make(store, name, nil)
	}
	whole := t.list(store, everything())
	equal("all", names(whole), "a b c d e")
	holds("a list's revision", whole.ResourceVersion >= whole.Items[4].ResourceVersion)
	last := t.make(store, "f", nil)

	page := at(whole.ResourceVersion)
	page.Predicate.Limit = 2
	first := t.list(store, page)
	equal("the first page", names(first), "a b")
	equal("what remains", *first.RemainingItemCount, int64(3))
	equal("its revision", first.ResourceVersion, whole.ResourceVersion)
	page.ResourceVersion, page.ResourceVersionMatch = "", ""
	page.Predicate.Continue = first.Continue
	second := t.list(store, page)
	equal("the second page", names(second), "c d")
	equal("what remains", *second.RemainingItemCount, int64(1))
	page.Predicate.Continue = second.Continue
	third := t.list(store, page)
	equal("the third page, as it was", names(third), "e")
	equal("no further page", third.Continue, "")

	equal("as it was", names(t.list(store, at(whole.ResourceVersion))), "a b c d e")
	notOlder := everything()
	notOlder.ResourceVersion, notOlder.ResourceVersionMatch = last.ResourceVersion, metav1.ResourceVersionMatchNotOlderThan
	equal("as it is", names(t.list(store, notOlder)), "a b c d e f")
	future := at("1000000000")
	refused("as it will be", store.GetList(t.ctx, t.all(), future, newList()), storage.IsTooLargeResourceVersion)
	future.ResourceVersionMatch = metav1.ResourceVersionMatchNotOlderThan
	refused("not older than the future", store.GetList(t.ctx, t.all(), future, newList()), storage.IsTooLargeResourceVersion)

	// With a selector, pages are asked for until one is full.
	check("label", t.update(store, "e", nil, func(object *corev1.ConfigMap) { object.Labels = map[string]string{"l": "x"} }))
	some := everything()
	some.Predicate.Label = labels.SelectorFromSet(labels.Set{"l": "x"})
	some.Predicate.GetAttrs = storage.DefaultNamespaceScopedAttr
	some.Predicate.Limit = 1
	equal("with a selector", names(t.list(store, some)), "e")
	one := storage.ListOptions{Predicate: storage.Everything}
	list := &corev1.ConfigMapList{}
	check("one object as a list", store.GetList(t.ctx, t.key("c"), one, list))
	equal("one object as a list", names(list), "c")
	none := &corev1.ConfigMapList{}
	check("an empty list", store.GetList(t.ctx, t.all()+"-none", everything(), none))
	equal("an empty list", names(none), "")
	holds("its revision", newer(none.ResourceVersion, whole.ResourceVersion))
}

func streamedLists(t *T) {
	holds("this version streams lists", utilfeature.DefaultFeatureGate.Enabled(features.EtcdRangeStream))
	store := t.store()
	t.makeMany(store, 400, strings.Repeat("v", 4000))
	before := calls("RangeStream")
	list := t.list(store, everything())
	equal("objects", len(list.Items), 400)
	for n, item := range list.Items {
		equal("in order", item.Name, fmt.Sprintf("o%04d", n))
	}
	page := everything()
	page.Predicate.Limit = 300
	first := t.list(store, page)
	equal("the first page", len(first.Items), 300)
	equal("what remains", *first.RemainingItemCount, int64(100))
	page.Predicate.Continue = first.Continue
	second := t.list(store, page)
	equal("the second page", len(second.Items), 100)
	equal("its first object", second.Items[0].Name, "o0300")
	equal("calls of RangeStream", calls("RangeStream")-before, float64(3))
	holds("it is still taken for supported", etcdfeature.DefaultFeatureSupportChecker.Supports(storage.RangeStream))
}

// Update changes an object in the way of the API server: again, whenever another has been faster.
func (t *T) update(store storage.Interface, name string, known *corev1.ConfigMap, change func(*corev1.ConfigMap)) error {
	var cached runtime.Object
	if known != nil {
		cached = known
	}
	changed := func(input runtime.Object, _ storage.ResponseMeta) (runtime.Object, *uint64, error) {
		object := input.DeepCopyObject().(*corev1.ConfigMap)
		change(object)
		return object, nil, nil
	}
	return store.GuaranteedUpdate(t.ctx, t.key(name), newObject(), false, nil, changed, cached)
}

func updates(t *T) {
	store := t.store()
	made := t.make(store, "counter", map[string]string{"n": "0"})
	count := func(object *corev1.ConfigMap) {
		object.Data = map[string]string{"n": fmt.Sprint(must(strconv.Atoi(object.Data["n"])) + 1)}
	}
	var all sync.WaitGroup
	errs := make(chan error, 8*20)
	for range 8 {
		all.Go(func() {
			for range 20 {
				errs <- t.update(store, "counter", nil, count)
			}
		})
	}
	all.Wait()
	close(errs)
	for err := range errs {
		check("update", err)
	}
	got := &corev1.ConfigMap{}
	check("get", store.Get(t.ctx, t.key("counter"), storage.GetOptions{}, got))
	equal("no update is lost", got.Data["n"], "160")
	// What the server knew is old: the transaction's answer has the newer one.
	check("update of an old object", t.update(store, "counter", made, count))
	check("get", store.Get(t.ctx, t.key("counter"), storage.GetOptions{}, got))
	equal("updated once", got.Data["n"], "161")
	check("update that changes nothing", t.update(store, "counter", nil, func(*corev1.ConfigMap) {}))
	same := &corev1.ConfigMap{}
	check("get", store.Get(t.ctx, t.key("counter"), storage.GetOptions{}, same))
	equal("nothing is written", same.ResourceVersion, got.ResourceVersion)
	refused("no such object", t.update(store, "none", nil, count), storage.IsNotFound)
	wrong := made.ResourceVersion
	nothing := func(input runtime.Object, _ storage.ResponseMeta) (runtime.Object, *uint64, error) {
		return input, nil, nil
	}
	err := store.GuaranteedUpdate(t.ctx, t.key("counter"), newObject(), false,
		&storage.Preconditions{ResourceVersion: &wrong}, nothing, nil)
	refused("a precondition", err, storage.IsInvalidObj)
}

func (t *T) delete(store storage.Interface, name string, conditions *storage.Preconditions) error {
	return store.Delete(t.ctx, t.key(name), newObject(), conditions, storage.ValidateAllObjectFunc, nil, storage.DeleteOptions{})
}

func deletions(t *T) {
	store := t.store()
	object := t.object("k", nil)
	object.UID = "right"
	made := &corev1.ConfigMap{}
	check("create", store.Create(t.ctx, t.key("k"), object, made, 0))
	refused("another object", t.delete(store, "k", storage.NewUIDPreconditions("wrong")), storage.IsInvalidObj)
	old := made.ResourceVersion
	check("update", t.update(store, "k", nil, func(object *corev1.ConfigMap) { object.Data = map[string]string{"k": "v"} }))
	refused("an old revision", t.delete(store, "k", &storage.Preconditions{ResourceVersion: &old}), storage.IsInvalidObj)
	forbidden := fmt.Errorf("not this one")
	err := store.Delete(t.ctx, t.key("k"), newObject(), nil,
		func(context.Context, runtime.Object) error { return forbidden }, nil, storage.DeleteOptions{})
	refused("an admission", err, saying(forbidden))
	// The deletion begins with an old object and finds the newer one in the transaction's answer.
	out := &corev1.ConfigMap{}
	check("delete", store.Delete(t.ctx, t.key("k"), out, storage.NewUIDPreconditions("right"),
		storage.ValidateAllObjectFunc, made, storage.DeleteOptions{}))
	equal("what was deleted", out.Data["k"], "v")
	holds("the deletion's revision", len(out.ResourceVersion) > len(old) || out.ResourceVersion > old)
	refused("deleted twice", t.delete(store, "k", nil), storage.IsNotFound)
	refused("it is gone", store.Get(t.ctx, t.key("k"), storage.GetOptions{}, out), storage.IsNotFound)
}

// ObjectsThatEnd have a lease, as events have.
func objectsThatEnd(t *T) {
	store := t.store()
	start := must(store.GetCurrentResourceVersion(t.ctx))
	watching := t.watch(store, fmt.Sprint(start))
	check("create", store.Create(t.ctx, t.key("brief"), t.object("brief", nil), nil, 2))
	kept := must(t.client("root").Get(t.ctx, "/registry"+t.key("brief")))
	// On a machine that is very slow it has ended by now.
	holds("it has a lease", len(kept.Kvs) == 0 || kept.Kvs[0].Lease != 0)
	t.event(watching, watch.Added, "brief")
	t.event(watching, watch.Deleted, "brief")
	refused("it has ended", store.Get(t.ctx, t.key("brief"), storage.GetOptions{}, newObject()), storage.IsNotFound)
}

func sizes(t *T) {
	store := t.store()
	before := must(store.Stats(t.ctx)).ObjectCount
	for _, name := range []string{"a", "b", "c"} {
		t.make(store, name, map[string]string{"v": strings.Repeat("x", 1000)})
	}
	equal("objects", must(store.Stats(t.ctx)).ObjectCount, before+3)
	check("estimate", store.EnableResourceSizeEstimation(func(context.Context) ([]string, error) {
		return []string{"/registry" + t.key("a"), "/registry" + t.key("b"), "/registry" + t.key("c")}, nil
	}))
	t.list(store, everything())
	t.until("an estimate", func() bool {
		stats := must(store.Stats(t.ctx))
		return stats.ObjectCount == 3 && stats.EstimatedAverageObjectSizeBytes > 1000
	})
}

// Compaction is what each API server does every few minutes, here several times a second. It takes the role root, as in etcd:
// another user can write down that history was compacted, and no more.
func compaction(t *T) {
	config := t.config(apiserver)
	store := t.storage(config)
	for _, name := range []string{"a", "b", "c"} {
		t.make(store, name, nil)
	}
	page := everything()
	page.Predicate.Limit = 1
	first := t.list(store, page)
	old := t.list(store, everything()).ResourceVersion
	oldest := must(strconv.ParseInt(old, 10, 64))
	_, _, _, err := etcd3.Compact(t.ctx, t.client(apiserver), 0, oldest)
	refused("without the role root", err, saying(rpctypes.ErrPermissionDenied))
	check("the history is still there", store.GetList(t.ctx, t.all(), at(old), newList()))

	config = t.config("root")
	config.CompactionInterval = 200 * time.Millisecond
	compacting := t.storage(config)
	t.until("compacted", func() bool {
		check("update", t.update(store, "a", nil, func(object *corev1.ConfigMap) {
			object.Data = map[string]string{"at": time.Now().String()}
		}))
		return compacting.CompactRevision() > oldest
	})
	kept := must(t.client("root").Get(t.ctx, "compact_rev_key"))
	holds("its key says so", must(strconv.ParseInt(string(kept.Kvs[0].Value), 10, 64)) > oldest)
	// The key is written before, and read by every server.
	t.until("the history is gone", func() bool {
		return store.GetList(t.ctx, t.all(), at(old), newList()) != nil
	})

	err = store.GetList(t.ctx, t.all(), at(old), newList())
	refused("a list at a compacted revision", err, apierrors.IsResourceExpired)
	equal("its code", err.(apierrors.APIStatus).Status().Code, int32(410))
	page.Predicate.Continue = first.Continue
	err = store.GetList(t.ctx, t.all(), page, newList())
	refused("the next page", err, apierrors.IsResourceExpired)
	page.Predicate.Continue = err.(apierrors.APIStatus).Status().Continue
	rest := t.list(store, page)
	equal("the rest, as it is now", names(rest), "b")
	event := t.next(t.watch(store, old))
	equal("a watch from there", event.Type, watch.Error)
	status := apierrors.FromObject(event.Object)
	refused("a watch from there", status, apierrors.IsResourceExpired)
}
