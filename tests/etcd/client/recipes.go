package main

import (
	"fmt"
	"sort"

	clientv3 "go.etcd.io/etcd/client/v3"
	recipe "go.etcd.io/etcd/client/v3/experimental/recipes"
)

var recipeTests = []test{
	{"queue", queue},
	{"priority-queue", priorityQueue},
	{"barrier", barrier},
	{"double-barrier", doubleBarrier},
	{"rwmutex", rwMutex},
}

func queue(t *T) {
	one := recipe.NewQueue(t.client(), t.prefix+"q")
	for n := range 5 {
		check(one.Enqueue(fmt.Sprint(n)), "enqueuing")
	}
	for n := range 5 {
		equal("in order", must(one.Dequeue()), fmt.Sprint(n))
	}
	// Several producers and consumers, of which some wait for work: each item goes to one.
	took := make(chan string, 40)
	queues := make([]*recipe.Queue, 4)
	for n := range queues {
		queues[n] = recipe.NewQueue(t.client(to(t.endpoints[n%len(t.endpoints)])), t.prefix+"q")
	}
	together(8, func(n int) error {
		for round := range 10 {
			if n < 4 {
				item, err := queues[n].Dequeue()
				if err != nil {
					return err
				}
				took <- item
			} else if err := queues[n-4].Enqueue(fmt.Sprint(n, "/", round)); err != nil {
				return err
			}
		}
		return nil
	})
	close(took)
	items := map[string]bool{}
	for item := range took {
		items[item] = true
	}
	equal("items", len(items), 40)
}

func priorityQueue(t *T) {
	queue := recipe.NewPriorityQueue(t.client(), t.prefix+"q")
	for _, priority := range []uint16{3, 1, 2, 1} {
		check(queue.Enqueue(fmt.Sprint(priority), priority), "enqueuing")
	}
	var got []string
	for range 4 {
		got = append(got, must(queue.Dequeue()))
	}
	holds(fmt.Sprint("by priority: ", got), sort.StringsAreSorted(got))
}

func barrier(t *T) {
	client := t.client()
	held := recipe.NewBarrier(client, t.prefix+"b")
	check(held.Hold(), "holding")
	holds("it is held by one", held.Hold() != nil)
	passed := make(chan error, 5)
	for n := range 5 {
		other := recipe.NewBarrier(t.client(to(t.endpoints[n%len(t.endpoints)])), t.prefix+"b")
		go func() { passed <- other.Wait() }()
	}
	select {
	case err := <-passed:
		fail("one passed a barrier that is held: %v", err)
	default:
	}
	check(held.Release(), "releasing")
	for range 5 {
		check(receive(t, "one passes", passed), "waiting")
	}
	check(held.Wait(), "one that is not held")
}

func doubleBarrier(t *T) {
	const count = 4
	barriers := make([]*recipe.DoubleBarrier, count)
	for n := range barriers {
		session := t.session(t.client())
		barriers[n] = recipe.NewDoubleBarrier(session, t.prefix+"b", count)
	}
	entered := make(chan error, count)
	for _, barrier := range barriers[1:] {
		go func() { entered <- barrier.Enter() }()
	}
	client := t.client()
	t.until("all but one wait", func() bool {
		return must(client.Get(t.ctx, t.prefix+"b/waiters", clientv3.WithPrefix())).Count == count-1
	})
	holds("nobody has entered", len(entered) == 0)
	check(barriers[0].Enter(), "entering")
	for range count - 1 {
		check(receive(t, "one enters", entered), "entering")
	}
	together(count, func(n int) error { return barriers[n].Leave() })
}

func rwMutex(t *T) {
	lock := func() *recipe.RWMutex {
		return recipe.NewRWMutex(t.session(t.client()), t.prefix+"l")
	}
	one, two, writer := lock(), lock(), lock()
	check(one.RLock(), "reading")
	check(two.RLock(), "reading beside it")
	locked := make(chan error, 1)
	go func() { locked <- writer.Lock() }()
	client := t.client()
	t.until("the writer waits", func() bool {
		return must(client.Get(t.ctx, t.prefix+"l", clientv3.WithPrefix())).Count == 3
	})
	check(one.RUnlock(), "one reader leaves")
	holds("the writer waits for the other", len(locked) == 0)
	check(two.RUnlock(), "the other leaves")
	check(receive(t, "the writer's turn", locked), "writing")
	read := make(chan error, 1)
	go func() { read <- one.RLock() }()
	check(writer.Unlock(), "the writer leaves")
	check(receive(t, "the reader's turn", read), "reading")
	check(one.RUnlock(), "the reader leaves")
}
