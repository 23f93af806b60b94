package main

import (
	"fmt"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/features"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/cacher"
	etcdfeature "k8s.io/apiserver/pkg/storage/feature"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/utils/clock"
)

// Watch begins after a revision.
func (t *T) watch(store storage.Interface, revision string, changes ...func(*storage.ListOptions)) watch.Interface {
	options := everything()
	options.ResourceVersion = revision
	for _, change := range changes {
		change(&options)
	}
	watching := must(store.Watch(t.ctx, t.all(), options))
	t.ends = append(t.ends, watching.Stop)
	return watching
}

func (t *T) next(watching watch.Interface) watch.Event {
	select {
	case event, open := <-watching.ResultChan():
		if !open {
			fail("the watch has ended")
		}
		return event
	case <-t.ctx.Done():
		fail("no event came")
	}
	panic("unreachable")
}

// Event takes one event, of this kind and about this object.
func (t *T) event(watching watch.Interface, kind watch.EventType, name string) *corev1.ConfigMap {
	event := t.next(watching)
	found := event.Object
	// A cache hands out objects that are encoded once for all.
	if shared, is := found.(runtime.CacheableObject); is {
		found = shared.GetObject()
	}
	object, is := found.(*corev1.ConfigMap)
	if !is {
		fail("an event of %s: got %s %#v", name, event.Type, event.Object)
	}
	equal("the event of "+name, fmt.Sprint(event.Type, " ", object.Name), fmt.Sprint(kind, " ", name))
	return object
}

func watchFromRevision(t *T) {
	store := t.store()
	start := t.make(store, "before", nil)
	set := func(value string) func(*corev1.ConfigMap) {
		return func(object *corev1.ConfigMap) { object.Data = map[string]string{"k": value} }
	}
	live := t.watch(store, start.ResourceVersion)
	made := t.make(store, "k", nil)
	check("update", t.update(store, "k", nil, set("1")))
	check("delete", t.delete(store, "k", nil))
	elsewhere := *t
	elsewhere.namespace = t.namespace + "-other"
	elsewhere.make(store, "not-seen", nil)
	t.make(store, "last", nil)
	history := t.watch(store, start.ResourceVersion)
	for _, watching := range []watch.Interface{live, history} {
		equal("the revision of the first", t.event(watching, watch.Added, "k").ResourceVersion, made.ResourceVersion)
		equal("what changed", t.event(watching, watch.Modified, "k").Data["k"], "1")
		gone := t.event(watching, watch.Deleted, "k")
		equal("what was deleted", gone.Data["k"], "1")
		holds("the deletion's revision", gone.ResourceVersion != made.ResourceVersion)
		t.event(watching, watch.Added, "last")
	}
	one := must(store.Watch(t.ctx, t.key("last"), storage.ListOptions{
		Predicate: storage.Everything, ResourceVersion: start.ResourceVersion,
	}))
	t.ends = append(t.ends, one.Stop)
	t.event(one, watch.Added, "last")
	live.Stop()
	t.until("the end", func() bool {
		_, open := <-live.ResultChan()
		return !open
	})
}

func watchWithInitialEvents(t *T) {
	holds("this version can", utilfeature.DefaultFeatureGate.Enabled(features.WatchList))
	store := t.store()
	t.makeMany(store, 50, "v")
	yes := true
	watching := t.watch(store, "", func(options *storage.ListOptions) {
		options.SendInitialEvents = &yes
		options.Predicate.AllowWatchBookmarks = true
	})
	for n := range 50 {
		t.event(watching, watch.Added, fmt.Sprintf("o%04d", n))
	}
	bookmark := t.event(watching, watch.Bookmark, "")
	equal("its annotation", bookmark.Annotations["k8s.io/initial-events-end"], "true")
	t.make(store, "later", nil)
	later := t.event(watching, watch.Added, "later")
	holds("it is newer", newer(later.ResourceVersion, bookmark.ResourceVersion))
}

func newer(revision, than string) bool {
	return must(strconv.ParseInt(revision, 10, 64)) > must(strconv.ParseInt(than, 10, 64))
}

// WatchProgress asks on which revision a watch is: what a cache needs for a list that is not older than the request.
func watchProgress(t *T) {
	store := t.store()
	t.until("the member's version is known to answer", func() bool {
		return etcdfeature.DefaultFeatureSupportChecker.Supports(storage.RequestWatchProgress)
	})
	made := t.make(store, "k", nil)
	watching := t.watch(store, made.ResourceVersion, func(options *storage.ListOptions) { options.ProgressNotify = true })
	elsewhere := *t
	elsewhere.namespace = t.namespace + "-other"
	other := elsewhere.make(store, "k", nil)
	var seen string
	t.until("the revision of the other object", func() bool {
		check("request", store.RequestWatchProgress(t.ctx))
		select {
		case event := <-watching.ResultChan():
			equal("an event", event.Type, watch.Bookmark)
			seen = event.Object.(*corev1.ConfigMap).ResourceVersion
			return !newer(other.ResourceVersion, seen)
		default:
			return false
		}
	})
	after := t.make(store, "after", nil)
	for {
		event := t.next(watching)
		object := event.Object.(*corev1.ConfigMap)
		if event.Type == watch.Bookmark {
			// Asked for above, and answered before the object was made.
			holds("progress is no further than events", newer(after.ResourceVersion, object.ResourceVersion))
			continue
		}
		equal("the event", fmt.Sprint(event.Type, " ", object.Name), "ADDED after")
		break
	}
}

// Cached is the storage that kube-apiserver has for nearly all of its resources.
func (t *T) cached(store storage.Interface) storage.Interface {
	made := must(cacher.NewCacherFromConfig(cacher.Config{
		Storage:             store,
		Versioner:           storage.APIObjectVersioner{},
		GroupResource:       schema.GroupResource{Resource: resource},
		EventsHistoryWindow: cacher.DefaultEventFreshDuration,
		ResourcePrefix:      "/" + resource,
		KeyFunc: func(object runtime.Object) (string, error) {
			config := object.(*corev1.ConfigMap)
			return "/" + resource + "/" + config.Namespace + "/" + config.Name, nil
		},
		GetAttrsFunc: storage.DefaultNamespaceScopedAttr,
		NewFunc:      newObject,
		NewListFunc:  newList,
		Codec:        codec,
		Clock:        clock.RealClock{},
	}))
	delegator := cacher.NewCacheDelegator(made, store)
	t.ends = append(t.ends, made.Stop, delegator.Stop)
	t.until("the cache is filled", func() bool { return delegator.ReadinessCheck() == nil })
	return delegator
}

// Cache reads from the memory of the server, which asks for progress to know that it is not behind.
func cache(t *T) {
	store := t.store()
	t.until("the member's version is known to answer", func() bool {
		return etcdfeature.DefaultFeatureSupportChecker.Supports(storage.RequestWatchProgress)
	})
	t.makeMany(store, 100, "v")
	cached := t.cached(store)
	equal("objects", len(t.list(cached, everything()).Items), 100)
	for n := range 20 {
		// Written past the cache, as by another server.
		t.make(store, fmt.Sprintf("p%02d", n), nil)
		equal("a list has what was written before", len(t.list(cached, everything()).Items), 101+n)
		check("delete", t.delete(store, fmt.Sprintf("o%04d", n), nil))
		got := t.list(cached, everything())
		equal("and not what was deleted", len(got.Items), 100+n)
		check("create", store.Create(t.ctx, t.key(fmt.Sprintf("o%04d", n)), t.object(fmt.Sprintf("o%04d", n), nil), nil, 0))
	}
	page := everything()
	page.Predicate.Limit = 70
	first := t.list(cached, page)
	equal("the first page", len(first.Items), 70)
	page.Predicate.Continue = first.Continue
	equal("the second page", len(t.list(cached, page).Items), 50)
	old := everything()
	old.ResourceVersion = "0"
	holds("whatever is there", len(t.list(cached, old).Items) > 0)
	check("update", t.update(cached, "p00", nil, func(object *corev1.ConfigMap) { object.Data = map[string]string{"k": "v"} }))
	check("delete", t.delete(cached, "p01", nil))
	equal("after both", len(t.list(cached, everything()).Items), 119)
}

// ManyWatchesOfACache all see everything in its order. A cache ends watches that take their events too slowly, and clients go on
// from where they were.
func manyWatchesOfACache(t *T) {
	store := t.store()
	cached := t.cached(store)
	start := t.make(cached, "start", nil)
	seen := make(chan string)
	for range 100 {
		watching := t.watch(cached, start.ResourceVersion)
		go func() { seen <- t.namesOf(50, watching, cached, start.ResourceVersion) }()
	}
	var wanted []string
	for n := range 50 {
		wanted = append(wanted, t.make(cached, fmt.Sprintf("k%02d", n), map[string]string{"v": strings.Repeat("v", 100)}).Name)
	}
	for range 100 {
		select {
		case got := <-seen:
			equal("what a watch has seen", got, strings.Join(wanted, " "))
		case <-t.ctx.Done():
			fail("a watch has not seen all")
		}
	}
}

// NamesOf gives the names of so many objects in the order of their events, or what else came. It runs beside the test, so it must
// not fail.
func (t *T) namesOf(count int, watching watch.Interface, store storage.Interface, revision string) string {
	var all []string
	for len(all) < count {
		event, open := <-watching.ResultChan()
		if !open {
			options := everything()
			options.ResourceVersion = revision
			again, err := store.Watch(t.ctx, t.all(), options)
			if err != nil {
				return err.Error()
			}
			defer again.Stop()
			watching = again
			continue
		}
		object, err := meta.Accessor(event.Object)
		if err != nil {
			return fmt.Sprintf("%s %#v", event.Type, event.Object)
		}
		all, revision = append(all, object.GetName()), object.GetResourceVersion()
	}
	return strings.Join(all, " ")
}

// MemberRestarts kills the member: watches and caches go on where they were.
func memberRestarts(t *T) {
	store := t.store()
	cached := t.cached(store)
	start := t.make(store, "start", nil)
	watching := t.watch(store, start.ResourceVersion)
	through := t.watch(cached, start.ResourceVersion)
	t.make(store, "before", nil)
	for _, one := range []watch.Interface{watching, through} {
		t.event(one, watch.Added, "before")
	}
	tell("kill")
	tell("start")
	t.until("the member writes", func() bool {
		err := store.Create(t.ctx, t.key("after"), t.object("after", nil), nil, 0)
		return err == nil || storage.IsExist(err)
	})
	for _, one := range []watch.Interface{watching, through} {
		t.event(one, watch.Added, "after")
	}
	t.until("the cache lists all", func() bool {
		list := &corev1.ConfigMapList{}
		err := cached.GetList(t.ctx, t.all(), everything(), list)
		return err == nil && names(list) == "after before start"
	})
}
