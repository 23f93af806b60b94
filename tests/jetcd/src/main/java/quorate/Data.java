package quorate;

import static quorate.T.bytes;
import static quorate.T.equal;
import static quorate.T.holds;
import static quorate.T.must;
import static quorate.T.refused;
import static quorate.T.text;

import io.etcd.jetcd.ByteSequence;
import io.etcd.jetcd.Client;
import io.etcd.jetcd.KV;
import io.etcd.jetcd.KeyValue;
import io.etcd.jetcd.kv.DeleteResponse;
import io.etcd.jetcd.kv.GetResponse;
import io.etcd.jetcd.kv.PutResponse;
import io.etcd.jetcd.kv.TxnResponse;
import io.etcd.jetcd.op.Cmp;
import io.etcd.jetcd.op.CmpTarget;
import io.etcd.jetcd.op.Op;
import io.etcd.jetcd.options.CompactOption;
import io.etcd.jetcd.options.DeleteOption;
import io.etcd.jetcd.options.GetOption;
import io.etcd.jetcd.options.GetOption.SortOrder;
import io.etcd.jetcd.options.GetOption.SortTarget;
import io.etcd.jetcd.options.PutOption;
import io.grpc.Status.Code;
import java.util.Arrays;
import java.util.List;
import java.util.stream.Collectors;

/** Keys and values, as a user with a role. */
final class Data {
    static final List<Main.Test> TESTS = List.of(
        new Main.Test("put-get-delete", Data::putGetDelete),
        new Main.Test("ranges", Data::ranges),
        new Main.Test("transactions", Data::transactions),
        new Main.Test("namespaces", Data::namespaces),
        new Main.Test("large-values", Data::largeValues),
        new Main.Test("errors", Data::errors),
        new Main.Test("compaction", Data::compaction));

    private Data() {
    }

    private static void putGetDelete(T t) throws Exception {
        KV kv = t.user().getKVClient();
        ByteSequence key = t.key("k");
        PutResponse first = must(kv.put(key, bytes("1"), PutOption.builder().withPrevKV().build()));
        holds("the first put has no previous value", !first.hasPrevKv());
        PutResponse second = must(kv.put(key, bytes("2"), PutOption.builder().withPrevKV().build()));
        equal("the previous value", text(second.getPrevKv().getValue()), "1");
        equal("revisions grow", second.getHeader().getRevision() > first.getHeader().getRevision(), true);
        KeyValue now = must(kv.get(key)).getKvs().get(0);
        equal("the value", text(now.getValue()), "2");
        equal("the version", now.getVersion(), 2L);
        equal("created", now.getCreateRevision(), first.getHeader().getRevision());
        equal("changed", now.getModRevision(), second.getHeader().getRevision());
        GetOption past = GetOption.builder().withRevision(first.getHeader().getRevision()).build();
        equal("at an old revision", text(must(kv.get(key, past)).getKvs().get(0).getValue()), "1");
        DeleteResponse gone = must(kv.delete(key, DeleteOption.builder().withPrevKV(true).build()));
        equal("deleted", gone.getDeleted(), 1L);
        equal("the deleted value", text(gone.getPrevKvs().get(0).getValue()), "2");
        equal("what is left", must(kv.get(key)).getCount(), 0L);
        ByteSequence binary = ByteSequence.from(new byte[] {'p', 0, (byte) 0xff, '\n'});
        must(kv.put(binary, ByteSequence.from(new byte[] {0, (byte) 0xfe})));
        holds("binary", Arrays.equals(must(kv.get(binary)).getKvs().get(0).getValue().getBytes(), new byte[] {0, (byte) 0xfe}));
    }

    /** Keys and values, one after the other, without the test's prefix. */
    private static String pairs(T t, GetResponse answer) {
        return answer.getKvs().stream()
            .map(kv -> text(kv.getKey()).substring(t.prefix.length()) + "=" + text(kv.getValue()))
            .collect(Collectors.joining(" "));
    }

    private static void ranges(T t) throws Exception {
        KV kv = t.user().getKVClient();
        for (String pair : List.of("a=3", "b=1", "c=2", "d=4", "a=5")) {
            must(kv.put(t.key(pair.substring(0, 1)), bytes(pair.substring(2))));
        }
        record Case(String name, GetOption.Builder options, String wanted) {
        }
        List<Case> cases = List.of(
            new Case("all", GetOption.builder(), "a=5 b=1 c=2 d=4"),
            new Case("limited", GetOption.builder().withLimit(2), "a=5 b=1"),
            new Case("by value", GetOption.builder().withSortField(SortTarget.VALUE).withSortOrder(SortOrder.ASCEND),
                "b=1 c=2 d=4 a=5"),
            new Case("by change, the last first",
                GetOption.builder().withSortField(SortTarget.MOD).withSortOrder(SortOrder.DESCEND), "a=5 d=4 c=2 b=1"),
            new Case("keys", GetOption.builder().withKeysOnly(true), "a= b= c= d="),
            new Case("count", GetOption.builder().withCountOnly(true), ""),
            new Case("from this member", GetOption.builder().withSerializable(true), "a=5 b=1 c=2 d=4"));
        for (Case one : cases) {
            GetResponse answer = must(kv.get(bytes(t.prefix), one.options().isPrefix(true).build()));
            equal(one.name(), pairs(t, answer), one.wanted());
            equal(one.name() + ": count", answer.getCount(), 4L);
            equal(one.name() + ": more", answer.isMore(), one.name().equals("limited"));
        }
        GetOption some = GetOption.builder().withRange(t.key("d")).build();
        equal("half open", pairs(t, must(kv.get(t.key("b"), some))), "b=1 c=2");
        equal("deleted", must(kv.delete(bytes(t.prefix), DeleteOption.builder().isPrefix(true).build())).getDeleted(), 4L);
    }

    private static void transactions(T t) throws Exception {
        KV kv = t.user().getKVClient();
        ByteSequence key = t.key("k");
        Cmp absent = new Cmp(key, Cmp.Op.EQUAL, CmpTarget.createRevision(0));
        Op put = Op.put(key, bytes("1"), PutOption.DEFAULT);
        Op get = Op.get(key, GetOption.DEFAULT);
        TxnResponse created = must(kv.txn().If(absent).Then(put).Else(get).commit());
        equal("creates", created.isSucceeded(), true);
        TxnResponse again = must(kv.txn().If(absent).Then(put).Else(get).commit());
        equal("creates again", again.isSucceeded(), false);
        KeyValue there = again.getGetResponses().get(0).getKvs().get(0);
        equal("what is there", text(there.getValue()), "1");
        must(kv.put(t.key("d"), bytes("x")));
        TxnResponse all = must(kv.txn().If(
            new Cmp(key, Cmp.Op.EQUAL, CmpTarget.value(bytes("1"))),
            new Cmp(key, Cmp.Op.GREATER, CmpTarget.value(bytes("0"))),
            new Cmp(key, Cmp.Op.LESS, CmpTarget.version(2)),
            new Cmp(key, Cmp.Op.EQUAL, CmpTarget.modRevision(there.getModRevision())),
            new Cmp(key, Cmp.Op.NOT_EQUAL, CmpTarget.createRevision(1))
        ).Then(
            Op.put(key, bytes("2"), PutOption.builder().withPrevKV().build()),
            get,
            Op.delete(t.key("d"), DeleteOption.builder().withPrevKV(true).build()),
            Op.txn(
                new Cmp[] {new Cmp(key, Cmp.Op.EQUAL, CmpTarget.value(bytes("1")))},
                new Op[] {Op.put(t.key("nested"), bytes("then"), PutOption.DEFAULT)},
                new Op[] {Op.put(t.key("nested"), bytes("else"), PutOption.DEFAULT)})
        ).commit());
        equal("succeeded", all.isSucceeded(), true);
        equal("what the put replaced", text(all.getPutResponses().get(0).getPrevKv().getValue()), "1");
        equal("what the get saw", text(all.getGetResponses().get(0).getKvs().get(0).getValue()), "2");
        equal("what was deleted", text(all.getDeleteResponses().get(0).getPrevKvs().get(0).getValue()), "x");
        equal("the branch within", all.getTxnResponses().get(0).isSucceeded(), true);
        KeyValue nested = must(kv.get(t.key("nested"))).getKvs().get(0);
        equal("its value", text(nested.getValue()), "then");
        equal("one revision for all", nested.getModRevision(), all.getHeader().getRevision());
        refused("a key twice", kv.txn().Then(put, put).commit(),
            Code.INVALID_ARGUMENT, "etcdserver: duplicate key given in txn request");
    }

    private static void namespaces(T t) throws Exception {
        Client within = t.plain(builder -> builder.user(bytes("user")).password(bytes(Rights.PASSWORD))
            .namespace(bytes(t.prefix + "inner/")));
        must(within.getKVClient().put(bytes("k"), bytes("v")));
        equal("within", text(must(within.getKVClient().get(bytes("k"))).getKvs().get(0).getKey()), "k");
        KV outside = t.user().getKVClient();
        equal("outside", must(outside.get(t.key("inner/k"))).getCount(), 1L);
        GetOption all = GetOption.builder().withRange(bytes("\0")).build();
        equal("all of it", must(within.getKVClient().get(bytes("\0"), all)).getCount(), 1L);
    }

    private static void largeValues(T t) throws Exception {
        KV kv = t.plain(builder -> builder.user(bytes("user")).password(bytes(Rights.PASSWORD))
            .maxInboundMessageSize(64 << 20)).getKVClient();
        byte[] value = new byte[1 << 20];
        for (int n = 0; n < 10; n++) {
            Arrays.fill(value, (byte) n);
            must(kv.put(t.key("k" + n), ByteSequence.from(value)));
        }
        GetResponse answer = must(kv.get(bytes(t.prefix), GetOption.builder().isPrefix(true).build()));
        equal("values of 1 MiB", answer.getKvs().size(), 10);
        Arrays.fill(value, (byte) 9);
        holds("the last comes back whole", Arrays.equals(answer.getKvs().get(9).getValue().getBytes(), value));
        refused("a request over the limit", kv.put(t.key("much"), ByteSequence.from(new byte[1_600_000])),
            Code.INVALID_ARGUMENT, "etcdserver: request is too large");
        must(kv.delete(bytes(t.prefix), DeleteOption.builder().isPrefix(true).build()));
    }

    private static void errors(T t) throws Exception {
        KV kv = t.user().getKVClient();
        refused("no key", kv.put(ByteSequence.EMPTY, bytes("v")),
            Code.INVALID_ARGUMENT, "etcdserver: key is not provided");
        refused("an unknown lease", kv.put(t.key("k"), bytes("v"), PutOption.builder().withLeaseId(12345).build()),
            Code.NOT_FOUND, "etcdserver: requested lease not found");
        refused("a future revision", kv.get(t.key("k"), GetOption.builder().withRevision(1L << 40).build()),
            Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision is a future revision");
        Op[] many = new Op[129];
        Arrays.setAll(many, n -> Op.put(t.key("k" + n), bytes("v"), PutOption.DEFAULT));
        refused("many operations", kv.txn().Then(many).commit(),
            Code.INVALID_ARGUMENT, "etcdserver: too many operations in txn request");
    }

    private static void compaction(T t) throws Exception {
        KV kv = t.user().getKVClient();
        ByteSequence key = t.key("k");
        long last = 0;
        for (int n = 0; n < 5; n++) {
            last = must(kv.put(key, bytes("" + n))).getHeader().getRevision();
        }
        must(t.root().getKVClient().compact(last - 1, CompactOption.builder().withCompactPhysical(true).build()));
        String compacted = "etcdserver: mvcc: required revision has been compacted";
        refused("a read before it", kv.get(key, GetOption.builder().withRevision(last - 2).build()),
            Code.OUT_OF_RANGE, compacted);
        GetOption at = GetOption.builder().withRevision(last - 1).build();
        equal("a read at it", text(must(kv.get(key, at)).getKvs().get(0).getValue()), "3");
        refused("the same compaction", t.root().getKVClient().compact(last - 1), Code.OUT_OF_RANGE, compacted);
        refused("a future one", t.root().getKVClient().compact(last + 1000),
            Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision is a future revision");
    }
}
