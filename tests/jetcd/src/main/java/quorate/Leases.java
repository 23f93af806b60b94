package quorate;

import static quorate.Rights.DENIED;
import static quorate.Rights.PASSWORD;
import static quorate.T.bytes;
import static quorate.T.equal;
import static quorate.T.holds;
import static quorate.T.must;
import static quorate.T.next;
import static quorate.T.refused;
import static quorate.T.text;
import static quorate.T.until;

import io.etcd.jetcd.ByteSequence;
import io.etcd.jetcd.Client;
import io.etcd.jetcd.Election;
import io.etcd.jetcd.KV;
import io.etcd.jetcd.Lease;
import io.etcd.jetcd.Lock;
import io.etcd.jetcd.election.LeaderKey;
import io.etcd.jetcd.election.LeaderResponse;
import io.etcd.jetcd.election.NoLeaderException;
import io.etcd.jetcd.election.NotLeaderException;
import io.etcd.jetcd.lease.LeaseKeepAliveResponse;
import io.etcd.jetcd.lease.LeaseTimeToLiveResponse;
import io.etcd.jetcd.options.GetOption;
import io.etcd.jetcd.options.LeaseOption;
import io.etcd.jetcd.options.PutOption;
import io.grpc.Status.Code;
import io.grpc.stub.StreamObserver;
import java.util.List;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;

/** Leases, and the locks and elections that need them. */
final class Leases {
    static final List<Main.Test> TESTS = List.of(
        new Main.Test("lease", Leases::lease),
        new Main.Test("lease-kept-alive", Leases::keptAlive),
        new Main.Test("lease-expires", Leases::expires),
        new Main.Test("lease-denied", Leases::denied),
        new Main.Test("lock", Leases::lock),
        new Main.Test("lock-denied", Leases::lockDenied),
        new Main.Test("election", Leases::election),
        new Main.Test("election-denied", Leases::electionDenied));

    private static final LeaseOption KEYS = LeaseOption.builder().withAttachedKeys().build();
    private static final String NONE = "etcdserver: requested lease not found";

    private Leases() {
    }

    private static PutOption with(long lease) {
        return PutOption.builder().withLeaseId(lease).build();
    }

    private static long grant(Client client, long seconds) throws InterruptedException {
        return must(client.getLeaseClient().grant(seconds)).getID();
    }

    private static void lease(T t) throws Exception {
        Client client = t.user();
        Lease leases = client.getLeaseClient();
        long id = grant(client, 600);
        must(client.getKVClient().put(t.key("k"), bytes("v"), with(id)));
        equal("the key's lease", must(client.getKVClient().get(t.key("k"))).getKvs().get(0).getLease(), id);
        LeaseTimeToLiveResponse left = must(leases.timeToLive(id, KEYS));
        equal("granted", left.getGrantedTTL(), 600L);
        holds("left: " + left.getTTL(), left.getTTL() > 0 && left.getTTL() <= 600);
        equal("its keys", left.getKeys().stream().map(T::text).toList(), List.of(t.prefix + "k"));
        equal("renewed", must(leases.keepAliveOnce(id)).getTTL(), 600L);
        must(leases.revoke(id));
        equal("its key is gone", must(client.getKVClient().get(t.key("k"))).getCount(), 0L);
        refused("revoked twice", leases.revoke(id), Code.NOT_FOUND, NONE);
        refused("renewed afterwards", leases.keepAliveOnce(id), Code.NOT_FOUND, NONE);
        equal("time left afterwards", must(leases.timeToLive(id, LeaseOption.DEFAULT)).getTTL(), -1L);
        refused("a put afterwards", client.getKVClient().put(t.key("k"), bytes("v"), with(id)), Code.NOT_FOUND, NONE);
        refused("a time too long", leases.grant(10_000_000_000L),
            Code.OUT_OF_RANGE, "etcdserver: too large lease TTL");
    }

    /** Puts what is heard into a queue. */
    private static final class Heard implements StreamObserver<LeaseKeepAliveResponse>, Election.Listener {
        private final BlockingQueue<Object> all = new LinkedBlockingQueue<>();

        @Override
        public void onNext(LeaseKeepAliveResponse renewal) {
            all.add(renewal);
        }

        @Override
        public void onNext(LeaderResponse leader) {
            all.add(leader);
        }

        @Override
        public void onError(Throwable why) {
            all.add(why);
        }

        @Override
        public void onCompleted() {
            all.add("completed");
        }
    }

    /** Leases outlive their time as long as they are kept alive, by a user with a password and by one with a certificate. */
    private static void keptAlive(T t) throws Exception {
        List<Client> clients = List.of(t.user(), t.secure("alice", builder -> builder));
        List<Heard> all = List.of(new Heard(), new Heard());
        List<Long> leases = List.of(grant(clients.get(0), 5), grant(clients.get(1), 5));
        for (int who = 0; who < 2; who++) {
            must(clients.get(who).getKVClient().put(t.key("k" + who), bytes("v"), with(leases.get(who))));
            t.keep(clients.get(who).getLeaseClient().keepAlive(leases.get(who), all.get(who)));
        }
        for (int who = 0; who < 2; who++) {
            BlockingQueue<Object> heard = all.get(who).all;
            // jetcd renews at once, and then after a third of the time or later: some seven seconds.
            for (int n = 0; n < 4; n++) {
                Object answer = next("a renewal", heard);
                holds("a renewal: " + answer, answer instanceof LeaseKeepAliveResponse renewal && renewal.getTTL() == 5);
            }
            equal("the key is there", must(clients.get(who).getKVClient().get(t.key("k" + who))).getCount(), 1L);
            must(clients.get(who).getLeaseClient().revoke(leases.get(who)));
            Object end = next("the end", heard);
            while (end instanceof LeaseKeepAliveResponse) {
                end = next("the end", heard);
            }
            holds("the lease is gone: " + end,
                end instanceof Throwable why && T.faults(why).contains("NOT_FOUND: " + NONE));
        }
    }

    /** The members' own work: no user's right and no token is needed for it. */
    private static void expires(T t) throws Exception {
        Client client = t.user();
        long id = grant(client, 1);
        must(client.getKVClient().put(t.key("k"), bytes("v"), with(id)));
        until("the key is gone", () -> must(client.getKVClient().get(t.key("k"))).getCount() == 0);
        equal("the lease too", must(client.getLeaseClient().timeToLive(id, KEYS)).getTTL(), -1L);
    }

    private static void denied(T t) throws Exception {
        Client root = t.root();
        Client user = t.user();
        Client reader = t.as("reader", PASSWORD);
        long id = grant(root, 600);
        must(root.getKVClient().put(bytes("secret/leased"), bytes("v"), with(id)));
        refused("another's lease, revoked", user.getLeaseClient().revoke(id), Code.PERMISSION_DENIED, DENIED);
        refused("its keys", user.getLeaseClient().timeToLive(id, KEYS), Code.PERMISSION_DENIED, DENIED);
        refused("a key put to it", user.getKVClient().put(t.key("k"), bytes("v"), with(id)),
            Code.PERMISSION_DENIED, DENIED);
        refused("nobody's grant", t.plain(builder -> builder).getLeaseClient().grant(60),
            Code.INVALID_ARGUMENT, "etcdserver: user name is empty");
        must(root.getLeaseClient().revoke(id));
        // A lease without keys is anybody's who is somebody.
        must(reader.getLeaseClient().revoke(grant(reader, 600)));
    }

    private static void lock(T t) throws Exception {
        Client first = t.user();
        Client second = t.secure("alice", builder -> builder);
        Lock locks = first.getLockClient();
        long one = grant(first, 600);
        long two = grant(second, 600);
        ByteSequence held = must(locks.lock(t.key("lock"), one)).getKey();
        holds("its key: " + text(held), text(held).startsWith(t.prefix + "lock/"));
        equal("whoever holds it locks it again", text(must(locks.lock(t.key("lock"), one)).getKey()), text(held));
        var waiting = second.getLockClient().lock(t.key("lock"), two);
        KV kv = first.getKVClient();
        var all = GetOption.builder().isPrefix(true).build();
        until("the second waits", () -> must(kv.get(t.key("lock/"), all)).getCount() == 2);
        holds("it has not got it", !waiting.isDone());
        must(locks.unlock(held));
        ByteSequence next = must(waiting).getKey();
        holds("another key", !text(next).equals(text(held)));
        // The end of its lease frees a lock as well.
        var again = locks.lock(t.key("lock"), one);
        until("the first waits", () -> must(kv.get(t.key("lock/"), all)).getCount() == 2);
        must(second.getLeaseClient().revoke(two));
        must(locks.unlock(must(again).getKey()));
        refused("a lease that is gone", locks.lock(t.key("lock"), two), Code.UNKNOWN, NONE);
        equal("nothing is left", must(kv.get(t.key("lock/"), all)).getCount(), 0L);
    }

    /** etcd's services for locks and elections give the errors of what they do without their codes. */
    private static void lockDenied(T t) throws Exception {
        Client reader = t.as("reader", PASSWORD);
        refused("a reader's lock", reader.getLockClient().lock(t.key("lock"), grant(reader, 600)),
            Code.UNKNOWN, DENIED);
        Client user = t.user();
        refused("a lock elsewhere", user.getLockClient().lock(bytes("secret/lock"), grant(user, 600)),
            Code.UNKNOWN, DENIED);
        refused("its end", user.getLockClient().unlock(bytes("secret/lock/1")), Code.UNKNOWN, DENIED);
        Client stranger = t.secure("stranger", builder -> builder);
        refused("a stranger's lock", stranger.getLockClient().lock(t.key("lock"), 1), Code.UNKNOWN, DENIED);
        refused("nobody's lock", t.plain(builder -> builder).getLockClient().lock(t.key("lock"), 1),
            Code.UNKNOWN, "etcdserver: user name is empty");
    }

    private static void election(T t) throws Exception {
        Client first = t.user();
        Client second = t.secure("alice", builder -> builder);
        Election one = first.getElectionClient();
        Election two = second.getElectionClient();
        ByteSequence name = t.key("election");
        thrown("nobody leads", one.leader(name), NoLeaderException.class);
        Heard heard = new Heard();
        two.observe(name, heard);
        LeaderKey leader = must(one.campaign(name, grant(first, 600), bytes("one"))).getLeader();
        equal("the election", text(leader.getName()), t.prefix + "election");
        equal("who leads", text(must(two.leader(name)).getKv().getValue()), "one");
        equal("heard", leads(heard), "one");
        must(one.proclaim(leader, bytes("still one")));
        equal("heard", leads(heard), "still one");
        var waiting = two.campaign(name, grant(second, 600), bytes("two"));
        var all = GetOption.builder().isPrefix(true).build();
        until("the second waits", () ->
            must(first.getKVClient().get(t.key("election/"), all)).getCount() == 2);
        holds("it does not lead", !waiting.isDone());
        must(one.resign(leader));
        LeaderKey other = must(waiting).getLeader();
        equal("heard", leads(heard), "two");
        thrown("who has resigned proclaims", one.proclaim(leader, bytes("x")), NotLeaderException.class);
        must(two.resign(other));
        thrown("nobody leads again", one.leader(name), NoLeaderException.class);
    }

    private static String leads(Heard heard) throws InterruptedException {
        Object answer = next("a leader", heard.all);
        return answer instanceof LeaderResponse leader ? text(leader.getKv().getValue()) : answer.toString();
    }

    private static void thrown(String what, CompletableFuture<?> call, Class<?> wanted) throws Exception {
        try {
            throw new T.Failure(what + ": got " + call.get(1, TimeUnit.MINUTES));
        } catch (ExecutionException why) {
            Throwable cause = why.getCause();
            holds(what + ": got " + T.faults(why) + ", want " + wanted.getSimpleName(), wanted.isInstance(cause));
        }
    }

    private static void electionDenied(T t) throws Exception {
        Client reader = t.as("reader", PASSWORD);
        refused("a reader's campaign", reader.getElectionClient().campaign(t.key("e"), grant(reader, 600), bytes("r")),
            Code.UNKNOWN, DENIED);
        thrown("a reader sees", reader.getElectionClient().leader(t.key("e")), NoLeaderException.class);
        Client user = t.user();
        refused("a campaign elsewhere",
            user.getElectionClient().campaign(bytes("secret/e"), grant(user, 600), bytes("u")), Code.UNKNOWN, DENIED);
        refused("its leader", user.getElectionClient().leader(bytes("secret/e")), Code.UNKNOWN, DENIED);
    }
}
