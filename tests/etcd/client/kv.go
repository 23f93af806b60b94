package main

import (
	"bytes"
	"fmt"
	"strings"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding/gzip"
)

var kvTests = []test{
	{"put-get-delete", putGetDelete},
	{"ranges", ranges},
	{"transactions", transactions},
	{"range-stream", rangeStream},
	{"large-values", largeValues},
	{"compressed-calls", compressedCalls},
	{"compaction", compaction},
	{"errors", errors},
}

// Keys and values, one after the other.
func pairs(answer *clientv3.GetResponse) string {
	var all []string
	for _, kv := range answer.Kvs {
		all = append(all, string(kv.Key)+"="+string(kv.Value))
	}
	return strings.Join(all, " ")
}

func putGetDelete(t *T) {
	client, key := t.client(), t.prefix+"k"
	first := must(client.Put(t.ctx, key, "1"))
	holds("the first put has no previous value", first.PrevKv == nil)
	second := must(client.Put(t.ctx, key, "2", clientv3.WithPrevKV()))
	equal("the previous value", string(second.PrevKv.Value), "1")
	holds("revisions grow", second.Header.Revision > first.Header.Revision)

	lease := must(client.Grant(t.ctx, 600))
	must(client.Put(t.ctx, key, "", clientv3.WithIgnoreValue(), clientv3.WithLease(lease.ID)))
	must(client.Put(t.ctx, key, "3", clientv3.WithIgnoreLease()))
	now := must(client.Get(t.ctx, key)).Kvs[0]
	equal("the lease", now.Lease, int64(lease.ID))
	equal("the version", now.Version, int64(4))
	equal("the value", string(now.Value), "3")

	past := must(client.Get(t.ctx, key, clientv3.WithRev(first.Header.Revision)))
	equal("at an old revision", pairs(past), key+"=1")
	gone := must(client.Delete(t.ctx, key, clientv3.WithPrevKV()))
	equal("deleted", gone.Deleted, int64(1))
	equal("the deleted value", string(gone.PrevKvs[0].Value), "3")
	equal("what is left", must(client.Get(t.ctx, key)).Count, int64(0))

	done := must(client.Do(t.ctx, clientv3.OpPut(key, "again")))
	holds("an operation answers as its call", done.Put() != nil)
	done = must(client.Do(t.ctx, clientv3.OpGet(key, clientv3.WithSerializable())))
	holds("a serializable read", done.Get() != nil)
	binary := t.prefix + "\x00\xff\n"
	must(client.Put(t.ctx, binary, "\x00\xfe"))
	equal("binary", must(client.Get(t.ctx, binary)).Kvs[0].Value, []byte{0, 0xfe})
}

func ranges(t *T) {
	client := t.client()
	for _, pair := range []string{"a=3", "b=1", "c=2", "d=4"} {
		must(client.Put(t.ctx, t.prefix+pair[:1], pair[2:]))
	}
	must(client.Put(t.ctx, t.prefix+"a", "5"))
	whole := must(client.Get(t.ctx, t.prefix, clientv3.WithPrefix()))
	revision := whole.Kvs[1].ModRevision
	cases := []struct {
		name, want string
		options    []clientv3.OpOption
	}{
		{"all", "a=5 b=1 c=2 d=4", nil},
		{"limited", "a=5 b=1", []clientv3.OpOption{clientv3.WithLimit(2)}},
		{"by value", "b=1 c=2 d=4 a=5", []clientv3.OpOption{
			clientv3.WithSort(clientv3.SortByValue, clientv3.SortAscend)}},
		{"by key, from behind", "d=4 c=2", []clientv3.OpOption{
			clientv3.WithSort(clientv3.SortByKey, clientv3.SortDescend), clientv3.WithLimit(2)}},
		{"the last key", "d=4", clientv3.WithLastKey()},
		{"the first revision", "b=1", clientv3.WithFirstRev()},
		{"the last created", "d=4", clientv3.WithLastCreate()},
		{"changed since", "a=5 c=2 d=4", []clientv3.OpOption{clientv3.WithMinModRev(revision + 1)}},
		{"changed until", "b=1", []clientv3.OpOption{clientv3.WithMaxModRev(revision)}},
		{"created since", "c=2 d=4", []clientv3.OpOption{clientv3.WithMinCreateRev(revision + 1)}},
		{"created until", "a=5 b=1", []clientv3.OpOption{clientv3.WithMaxCreateRev(revision)}},
		{"keys only", "a= b= c= d=", []clientv3.OpOption{clientv3.WithKeysOnly()}},
		{"count only", "", []clientv3.OpOption{clientv3.WithCountOnly()}},
	}
	for _, one := range cases {
		options := append([]clientv3.OpOption{clientv3.WithPrefix()}, one.options...)
		answer := must(client.Get(t.ctx, t.prefix, options...))
		equal(one.name, strings.ReplaceAll(pairs(answer), t.prefix, ""), one.want)
		if one.name == "limited" || one.name == "count only" {
			equal(one.name+": count", answer.Count, int64(4))
			equal(one.name+": more", answer.More, one.name == "limited")
		}
	}
	some := must(client.Get(t.ctx, t.prefix+"b", clientv3.WithRange(t.prefix+"d")))
	equal("half open", strings.ReplaceAll(pairs(some), t.prefix, ""), "b=1 c=2")
	from := must(client.Get(t.ctx, t.prefix+"c", clientv3.WithFromKey(), clientv3.WithLimit(2)))
	equal("from a key on", strings.ReplaceAll(pairs(from), t.prefix, ""), "c=2 d=4")
}

func transactions(t *T) {
	client, key := t.client(), t.prefix+"k"
	absent := clientv3.Compare(clientv3.CreateRevision(key), "=", 0)
	txn := func() bool {
		answer := must(client.Txn(t.ctx).If(absent).Then(clientv3.OpPut(key, "1")).Else(clientv3.OpGet(key)).Commit())
		return answer.Succeeded
	}
	equal("creates", txn(), true)
	equal("creates again", txn(), false)
	revision := must(client.Get(t.ctx, key)).Kvs[0].ModRevision
	lease := must(client.Grant(t.ctx, 600))
	must(client.Put(t.ctx, t.prefix+"l", "x", clientv3.WithLease(lease.ID)))
	answer := must(client.Txn(t.ctx).If(
		clientv3.Compare(clientv3.Value(key), "=", "1"),
		clientv3.Compare(clientv3.Value(key), ">", "0"),
		clientv3.Compare(clientv3.Version(key), "<", 2),
		clientv3.Compare(clientv3.ModRevision(key), "=", revision),
		clientv3.Compare(clientv3.LeaseValue(t.prefix+"l"), "=", lease.ID),
		clientv3.Compare(clientv3.CreateRevision(t.prefix), "!=", 0).WithPrefix(),
	).Then(
		clientv3.OpPut(key, "2", clientv3.WithPrevKV()),
		clientv3.OpGet(t.prefix, clientv3.WithPrefix()),
		clientv3.OpDelete(t.prefix+"l", clientv3.WithPrevKV()),
		clientv3.OpTxn(
			[]clientv3.Cmp{clientv3.Compare(clientv3.Value(key), "=", "1")},
			[]clientv3.Op{clientv3.OpPut(t.prefix+"nested", "then")},
			[]clientv3.Op{clientv3.OpPut(t.prefix+"nested", "else")},
		),
	).Commit())
	equal("succeeded", answer.Succeeded, true)
	equal("what the put replaced", string(answer.Responses[0].GetResponsePut().PrevKv.Value), "1")
	equal("what the range saw", string(answer.Responses[1].GetResponseRange().Kvs[0].Value), "2")
	equal("what was deleted", string(answer.Responses[2].GetResponseDeleteRange().PrevKvs[0].Value), "x")
	nested := must(client.Get(t.ctx, t.prefix+"nested"))
	equal("the nested branch", string(nested.Kvs[0].Value), "then")
	equal("one revision for all", nested.Kvs[0].ModRevision, answer.Header.Revision)
}

func rangeStream(t *T) {
	client := t.client()
	value := strings.Repeat("v", 1000)
	for n := range 300 {
		must(client.Put(t.ctx, fmt.Sprintf("%s%03d", t.prefix, n), value))
	}
	stream := must(client.GetStream(t.ctx, t.prefix, clientv3.WithPrefix()))
	got := must(clientv3.GetStreamToGetResponse(stream))
	want := must(client.Get(t.ctx, t.prefix, clientv3.WithPrefix()))
	equal("a streamed range", pairs(got), pairs(want))
	equal("its count", got.Count, want.Count)
}

func largeValues(t *T) {
	client := t.client(func(config *clientv3.Config) {
		config.MaxCallSendMsgSize = 64 << 20
	})
	value := strings.Repeat("0123456789abcdef", 1<<16)
	for n := range 20 {
		must(client.Put(t.ctx, fmt.Sprintf("%s%02d", t.prefix, n), value))
	}
	answer := must(client.Get(t.ctx, t.prefix, clientv3.WithPrefix()))
	equal("values of 1 MiB", len(answer.Kvs), 20)
	for _, kv := range answer.Kvs {
		holds("a large value comes back whole", string(kv.Value) == value)
	}
	_, err := client.Put(t.ctx, t.prefix+"much", strings.Repeat("x", 1_600_000))
	refused("a request over the limit", err, rpctypes.ErrRequestTooLarge)
	_, err = client.Put(t.ctx, t.prefix+"more", strings.Repeat("x", 3<<20))
	holds(fmt.Sprintf("a message over the limit: %v", err),
		err != nil && strings.Contains(err.Error(), "received message larger than max"))
	must(client.Delete(t.ctx, t.prefix, clientv3.WithPrefix()))
}

func compressedCalls(t *T) {
	client := t.client(func(config *clientv3.Config) {
		config.DialOptions = append(config.DialOptions,
			grpc.WithDefaultCallOptions(grpc.UseCompressor(gzip.Name)))
	})
	watch := client.Watch(t.ctx, t.prefix, clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	receive(t, "created", watch)
	for _, size := range []int{0, 1, 1000, 1 << 20} {
		value := bytes.Repeat([]byte("gz"), size/2)
		must(client.Put(t.ctx, t.prefix+"k", string(value)))
		got := must(client.Get(t.ctx, t.prefix+"k"))
		holds(fmt.Sprintf("a value of %d bytes comes back", size), bytes.Equal(got.Kvs[0].Value, value))
		event := receive(t, "an event", watch).Events[0]
		holds(fmt.Sprintf("its event of %d bytes", size), bytes.Equal(event.Kv.Value, value))
	}
	lease := must(client.Grant(t.ctx, 600))
	must(client.KeepAliveOnce(t.ctx, lease.ID))
}

func compaction(t *T) {
	client, key := t.client(), t.prefix+"k"
	var last int64
	for n := range 5 {
		last = must(client.Put(t.ctx, key, fmt.Sprint(n))).Header.Revision
	}
	must(client.Compact(t.ctx, last-1, clientv3.WithCompactPhysical()))
	_, err := client.Get(t.ctx, key, clientv3.WithRev(last-2))
	refused("a read before it", err, rpctypes.ErrCompacted)
	equal("a read at it", pairs(must(client.Get(t.ctx, key, clientv3.WithRev(last-1)))), key+"=3")
	_, err = client.Compact(t.ctx, last-1)
	refused("the same compaction", err, rpctypes.ErrCompacted)
	_, err = client.Compact(t.ctx, last+1000)
	refused("a future one", err, rpctypes.ErrFutureRev)
	watch := client.Watch(t.ctx, key, clientv3.WithRev(1))
	answer := receive(t, "the watch", watch)
	refused("a watch from before it", answer.Err(), rpctypes.ErrCompacted)
	equal("where history begins", answer.CompactRevision, last-1)
}

func errors(t *T) {
	client, key := t.client(), t.prefix+"k"
	_, err := client.Put(t.ctx, "", "v")
	refused("no key", err, rpctypes.ErrEmptyKey)
	_, err = client.Put(t.ctx, key, "", clientv3.WithIgnoreValue())
	refused("a value of no key", err, rpctypes.ErrKeyNotFound)
	_, err = client.Put(t.ctx, key, "v", clientv3.WithLease(12345))
	refused("an unknown lease", err, rpctypes.ErrLeaseNotFound)
	_, err = client.Get(t.ctx, key, clientv3.WithRev(1<<40))
	refused("a future revision", err, rpctypes.ErrFutureRev)
	_, err = client.Txn(t.ctx).Then(clientv3.OpPut(key, "1"), clientv3.OpPut(key, "2")).Commit()
	refused("a key twice", err, rpctypes.ErrDuplicateKey)
	var many []clientv3.Op
	for n := range 129 {
		many = append(many, clientv3.OpPut(fmt.Sprint(key, n), ""))
	}
	_, err = client.Txn(t.ctx).Then(many...).Commit()
	refused("many operations", err, rpctypes.ErrTooManyOps)
	_, err = client.MoveLeader(t.ctx, 1)
	holds("no such member leads", err != nil)
	_, err = client.MemberRemove(t.ctx, 1)
	refused("no such member", err, rpctypes.ErrMemberNotFound)
	_, err = client.Revoke(t.ctx, 12345)
	refused("revoking an unknown lease", err, rpctypes.ErrLeaseNotFound)
	_, err = client.KeepAliveOnce(t.ctx, 12345)
	refused("an unknown lease's renewal", err, rpctypes.ErrLeaseNotFound)
}
