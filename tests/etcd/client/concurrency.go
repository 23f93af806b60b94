package main

import (
	"fmt"
	"strconv"
	"sync"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

var concurrencyTests = []test{
	{"session", session},
	{"mutex", mutex},
	{"election", election},
	{"stm", stm},
}

func (t *T) session(client *clientv3.Client) *concurrency.Session {
	session := must(concurrency.NewSession(client, concurrency.WithTTL(60), concurrency.WithContext(t.ctx)))
	t.ends = append([]func(){func() { _ = session.Close() }}, t.ends...)
	return session
}

// Together runs functions at the same time and fails with the first of their errors.
func together(count int, each func(int) error) {
	failed := make(chan error, count)
	for n := range count {
		go func() { failed <- each(n) }()
	}
	for range count {
		check(<-failed, "one of several")
	}
}

func session(t *T) {
	client := t.client()
	session := t.session(client)
	must(client.Put(t.ctx, t.prefix+"k", "", clientv3.WithLease(session.Lease())))
	check(session.Close(), "closing")
	closed(t, "a closed session", session.Done())
	equal("its keys", must(client.Get(t.ctx, t.prefix+"k")).Count, int64(0))

	revoked := t.session(client)
	must(client.Revoke(t.ctx, revoked.Lease()))
	closed(t, "a session without its lease", revoked.Done())

	orphan := t.session(client)
	orphan.Orphan()
	closed(t, "an orphan", orphan.Done())
	holds("its lease lives", must(client.TimeToLive(t.ctx, orphan.Lease())).TTL > 0)
	shared := must(concurrency.NewSession(client, concurrency.WithLease(orphan.Lease())))
	equal("a session with its lease", shared.Lease(), orphan.Lease())
	check(shared.Close(), "closing")
}

func mutex(t *T) {
	holder := t.session(t.client())
	held := concurrency.NewMutex(holder, t.prefix+"lock")
	check(held.Lock(t.ctx), "locking")
	other := concurrency.NewMutex(t.session(t.client()), t.prefix+"lock")
	refused("a held lock", other.TryLock(t.ctx), concurrency.ErrLocked)
	client := holder.Client()
	write := func() bool {
		return must(client.Txn(t.ctx).If(held.IsOwner()).Then(clientv3.OpPut(t.prefix+"k", "")).Commit()).Succeeded
	}
	equal("the holder writes", write(), true)
	check(held.Unlock(t.ctx), "unlocking")
	equal("and does not after it", write(), false)
	check(other.TryLock(t.ctx), "a free lock")
	refused("a lock that was released", held.Unlock(t.ctx), concurrency.ErrLockReleased)
	check(other.Unlock(t.ctx), "unlocking")

	// Read, add, write, under the lock: nothing is lost.
	must(client.Put(t.ctx, t.prefix+"count", "0"))
	sessions := make([]*concurrency.Session, 6)
	for n := range sessions {
		sessions[n] = t.session(t.client(to(t.endpoints[n%len(t.endpoints)])))
	}
	together(len(sessions), func(n int) error {
		mutex := concurrency.NewMutex(sessions[n], t.prefix+"lock")
		for range 10 {
			if err := mutex.Lock(t.ctx); err != nil {
				return err
			}
			// Linearizable, through whichever member the session uses.
			read, err := sessions[n].Client().Get(t.ctx, t.prefix+"count")
			if err != nil {
				return err
			}
			count, err := strconv.Atoi(string(read.Kvs[0].Value))
			if err != nil {
				return err
			}
			if _, err := sessions[n].Client().Put(t.ctx, t.prefix+"count", fmt.Sprint(count+1)); err != nil {
				return err
			}
			if err := mutex.Unlock(t.ctx); err != nil {
				return err
			}
		}
		return nil
	})
	equal("the count", string(must(client.Get(t.ctx, t.prefix+"count")).Kvs[0].Value), "60")
	var locker sync.Locker = concurrency.NewLocker(holder, t.prefix+"locker")
	locker.Lock()
	locker.Unlock()
}

func election(t *T) {
	first, second := t.session(t.client()), t.session(t.client())
	one, two := concurrency.NewElection(first, t.prefix+"e"), concurrency.NewElection(second, t.prefix+"e")
	_, err := one.Leader(t.ctx)
	refused("nobody leads", err, concurrency.ErrElectionNoLeader)
	check(one.Campaign(t.ctx, "one"), "campaigning")
	observed := two.Observe(t.ctx)
	equal("observed", string(receive(t, "a leader", observed).Kvs[0].Value), "one")
	check(one.Proclaim(t.ctx, "one again"), "proclaiming")
	equal("observed", string(receive(t, "a proclamation", observed).Kvs[0].Value), "one again")

	won := make(chan error, 1)
	go func() { won <- two.Campaign(t.ctx, "two") }()
	// Two has its key, and waits.
	client := first.Client()
	t.until("a second candidate", func() bool {
		return must(client.Get(t.ctx, t.prefix+"e", clientv3.WithPrefix())).Count == 2
	})
	again := concurrency.ResumeElection(first, t.prefix+"e", one.Key(), one.Rev())
	check(again.Resign(t.ctx), "resigning")
	check(receive(t, "the second wins", won), "campaigning")
	equal("leads", string(must(two.Leader(t.ctx)).Kvs[0].Value), "two")
	equal("observed", string(receive(t, "the second", observed).Kvs[0].Value), "two")
	refused("one that has resigned", one.Proclaim(t.ctx, "x"), concurrency.ErrElectionNotLeader)

	// A leader whose session ends leads no longer.
	third := concurrency.NewElection(first, t.prefix+"e")
	go func() { won <- third.Campaign(t.ctx, "three") }()
	check(second.Close(), "closing")
	check(receive(t, "the third wins", won), "campaigning")
}

func stm(t *T) {
	client := t.client()
	for name, isolation := range map[string]concurrency.Isolation{
		"serializable snapshot": concurrency.SerializableSnapshot,
		"serializable":          concurrency.Serializable,
		"repeatable reads":      concurrency.RepeatableReads,
	} {
		accounts := []string{t.prefix + name + "/0", t.prefix + name + "/1", t.prefix + name + "/2"}
		for _, account := range accounts {
			must(client.Put(t.ctx, account, "100"))
		}
		together(4, func(n int) error {
			for round := range 10 {
				from, to := accounts[(n+round)%3], accounts[(n+round+1)%3]
				move := func(stm concurrency.STM) error {
					a, _ := strconv.Atoi(stm.Get(from))
					b, _ := strconv.Atoi(stm.Get(to))
					stm.Put(from, fmt.Sprint(a-n))
					stm.Put(to, fmt.Sprint(b+n))
					return nil
				}
				options := []concurrency.STMOption{
					concurrency.WithIsolation(isolation), concurrency.WithAbortContext(t.ctx),
					concurrency.WithPrefetch(accounts...),
				}
				if _, err := concurrency.NewSTM(client, move, options...); err != nil {
					return err
				}
			}
			return nil
		})
		sum := 0
		for _, account := range accounts {
			sum += must(strconv.Atoi(string(must(client.Get(t.ctx, account)).Kvs[0].Value)))
		}
		equal(name+": the sum", sum, 300)
	}
	key := t.prefix + "gone"
	must(client.Put(t.ctx, key, ""))
	remove := func(stm concurrency.STM) error {
		// It reads one member's own state, which may be behind.
		_ = stm.Rev(key)
		stm.Del(key)
		return nil
	}
	must(concurrency.NewSTM(client, remove, concurrency.WithIsolation(concurrency.ReadCommitted)))
	equal("a deletion", must(client.Get(t.ctx, key)).Count, int64(0))
}
