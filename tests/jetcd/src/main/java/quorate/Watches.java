package quorate;

import static quorate.Rights.DENIED;
import static quorate.Rights.PASSWORD;
import static quorate.T.bytes;
import static quorate.T.equal;
import static quorate.T.faults;
import static quorate.T.holds;
import static quorate.T.must;
import static quorate.T.text;

import io.etcd.jetcd.Auth;
import io.etcd.jetcd.Client;
import io.etcd.jetcd.KV;
import io.etcd.jetcd.Watch;
import io.etcd.jetcd.auth.Permission;
import io.etcd.jetcd.common.exception.CompactedException;
import io.etcd.jetcd.options.WatchOption;
import io.etcd.jetcd.watch.WatchEvent;
import io.etcd.jetcd.watch.WatchEvent.EventType;
import io.etcd.jetcd.watch.WatchResponse;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;

/** Watches, as a user with a role. */
final class Watches {
    static final List<Main.Test> TESTS = List.of(
        new Main.Test("watch", Watches::watch),
        new Main.Test("watch-filters", Watches::filters),
        new Main.Test("watch-progress", Watches::progress),
        new Main.Test("watch-compacted", Watches::compacted),
        new Main.Test("watch-denied", Watches::denied),
        new Main.Test("watch-after-token", Watches::afterToken),
        new Main.Test("watch-with-certificate", Watches::withCertificate),
        new Main.Test("watch-resumes", Watches::resumes));

    private static final String COMPLETED = "completed";
    private static final String INVALID =
        "CANCELLED: rpc error: code = Unauthenticated desc = etcdserver: invalid auth token";

    private Watches() {
    }

    /** What a watch has heard: answers and errors in their order. */
    private static final class Heard implements Watch.Listener {
        private final BlockingQueue<Object> all = new LinkedBlockingQueue<>();

        @Override
        public void onNext(WatchResponse answer) {
            all.add(answer);
        }

        @Override
        public void onError(Throwable why) {
            all.add(why);
        }

        @Override
        public void onCompleted() {
            all.add(COMPLETED);
        }

        WatchResponse answer() throws InterruptedException {
            Object next = T.next("an answer of the watch", all);
            if (next instanceof WatchResponse answer) {
                return answer;
            }
            throw new T.Failure("an answer: got " + (next instanceof Throwable why ? faults(why) : next));
        }

        Throwable error() throws InterruptedException {
            Object next = T.next("an error of the watch", all);
            if (next instanceof Throwable why) {
                return why;
            }
            throw new T.Failure("an error: got " + next);
        }

        /** As many events as that, however they are divided. */
        List<WatchEvent> events(int wanted) throws InterruptedException {
            List<WatchEvent> events = new ArrayList<>();
            while (events.size() < wanted) {
                events.addAll(answer().getEvents());
            }
            equal("events", events.size(), wanted);
            return events;
        }

        /** The next answer that comes after whatever errors; those must begin with one of these. */
        WatchResponse answerAfter(String... errors) throws InterruptedException {
            while (true) {
                Object next = T.next("an answer of the watch", all);
                if (next instanceof WatchResponse answer) {
                    return answer;
                }
                List<String> why = next instanceof Throwable thrown ? faults(thrown) : List.of(next.toString());
                boolean known = why.stream().anyMatch(one -> List.of(errors).stream().anyMatch(one::startsWith));
                holds("a known error: " + why, known);
            }
        }
    }

    private static WatchOption.Builder prefix() {
        return WatchOption.builder().isPrefix(true).withCreateNotify(true);
    }

    private static Heard start(T t, Client client, WatchOption.Builder option) throws Exception {
        Heard heard = new Heard();
        t.keep(client.getWatchClient().watch(bytes(t.prefix), option.build(), heard));
        return heard;
    }

    private static void watch(T t) throws Exception {
        Client client = t.user();
        KV kv = client.getKVClient();
        Heard heard = start(t, client, prefix().withPrevKV(true).withRequireLeader(true));
        holds("created", heard.answer().isCreatedNotify());
        long revision = must(kv.put(t.key("k"), bytes("1"))).getHeader().getRevision();
        must(kv.put(t.key("k"), bytes("2")));
        must(kv.put(bytes("elsewhere"), bytes("x")));
        must(kv.delete(t.key("k")));
        List<WatchEvent> events = heard.events(3);
        equal("kinds", events.stream().map(WatchEvent::getEventType).toList(),
            List.of(EventType.PUT, EventType.PUT, EventType.DELETE));
        equal("the first revision", events.get(0).getKeyValue().getModRevision(), revision);
        equal("the second value", text(events.get(1).getKeyValue().getValue()), "2");
        equal("what it replaced", text(events.get(1).getPrevKV().getValue()), "1");
        equal("what was deleted", text(events.get(2).getPrevKV().getValue()), "2");
        equal("a deletion's revision", events.get(2).getKeyValue().getModRevision(), revision + 3);

        Heard history = start(t, client, WatchOption.builder().isPrefix(true).withRevision(revision));
        equal("the same from history", history.events(3).stream().map(WatchEvent::getEventType).toList(),
            List.of(EventType.PUT, EventType.PUT, EventType.DELETE));

        Heard closing = new Heard();
        Watch.Watcher watcher = client.getWatchClient().watch(t.key("k"), closing);
        watcher.close();
        equal("the end", T.next("the end", closing.all), COMPLETED);
        must(kv.put(t.key("k"), bytes("3")));
        equal("the other goes on", text(heard.events(1).get(0).getKeyValue().getValue()), "3");
        holds("one that is closed hears nothing", closing.all.isEmpty());
    }

    private static void filters(T t) throws Exception {
        Client client = t.user();
        Heard puts = start(t, client, prefix().withNoDelete(true));
        Heard deletions = start(t, client, prefix().withNoPut(true));
        holds("created", puts.answer().isCreatedNotify());
        holds("created", deletions.answer().isCreatedNotify());
        KV kv = client.getKVClient();
        must(kv.put(t.key("k"), bytes("1")));
        must(kv.delete(t.key("k")));
        must(kv.put(t.key("k"), bytes("2")));
        must(kv.delete(t.key("k")));
        equal("puts", puts.events(2).stream().map(event -> text(event.getKeyValue().getValue())).toList(), List.of("1", "2"));
        equal("deletions", deletions.events(2).stream().map(WatchEvent::getEventType).toList(),
            List.of(EventType.DELETE, EventType.DELETE));
    }

    private static void progress(T t) throws Exception {
        Client client = t.user();
        Heard heard = new Heard();
        Watch.Watcher watcher = t.keep(client.getWatchClient().watch(bytes(t.prefix), prefix().build(), heard));
        holds("created", heard.answer().isCreatedNotify());
        long revision = must(client.getKVClient().put(bytes("elsewhere"), bytes("x"))).getHeader().getRevision();
        // A member answers with what it has applied, and asks nobody else.
        T.until("the revision of the put", () -> {
            watcher.requestProgress();
            WatchResponse answer = heard.answer();
            holds("progress", answer.isProgressNotify());
            return answer.getHeader().getRevision() >= revision;
        });
    }

    private static void compacted(T t) throws Exception {
        Client client = t.user();
        KV kv = client.getKVClient();
        must(kv.put(t.key("k"), bytes("1")));
        long last = must(kv.put(t.key("k"), bytes("2"))).getHeader().getRevision();
        must(t.root().getKVClient().compact(last));
        Heard heard = start(t, client, WatchOption.builder().isPrefix(true).withRevision(1));
        Throwable why = heard.error();
        holds("compacted: " + faults(why), why instanceof CompactedException);
        equal("where history begins", ((CompactedException) why).getCompactedRevision(), last);
        equal("the end", T.next("the end", heard.all), COMPLETED);
    }

    /**
     * A watch of what its user may not read. jetcd takes that for a token that has ended: it logs in and tries again, twice a
     * second, so the watch begins once the right is there.
     */
    private static void denied(T t) throws Exception {
        Auth auth = t.root().getAuthClient();
        Client client = t.as("changing", PASSWORD);
        Heard heard = start(t, client, prefix());
        String refusal = "CANCELLED: rpc error: code = PermissionDenied desc = " + DENIED;
        List<String> why = faults(heard.error());
        holds("refused: " + why, why.contains(refusal));
        // On which jetcd closes its side of the stream. Quorate then ends it, which jetcd reports; etcd leaves it open.
        must(auth.roleGrantPermission(
            bytes("changes"), bytes(t.prefix), Rights.endOf(t.prefix), Permission.Type.READWRITE));
        holds("created", heard.answerAfter(refusal, COMPLETED).isCreatedNotify());
        must(client.getKVClient().put(t.key("k"), bytes("v")));
        equal("an event", text(heard.events(1).get(0).getKeyValue().getKey()), t.prefix + "k");
        // Beyond its own keys, with a range that begins within.
        Heard wide = new Heard();
        WatchOption option = WatchOption.builder().withRange(bytes("~")).build();
        t.keep(client.getWatchClient().watch(bytes(t.prefix), option, wide));
        List<String> beyond = faults(wide.error());
        holds("refused: " + beyond, beyond.contains(refusal));
    }

    /** The token has ended when the watch begins: jetcd hears that on the stream, logs in and asks for the watch again. */
    private static void afterToken(T t) throws Exception {
        Auth auth = t.root().getAuthClient();
        T.Logins logins = new T.Logins();
        Client client = t.plain(builder -> builder.user(bytes("user")).password(bytes(PASSWORD)).interceptor(logins));
        must(client.getKVClient().get(t.key("k")));
        must(auth.userChangePassword(bytes("user"), bytes(PASSWORD)));
        Heard heard = start(t, client, prefix());
        holds("created", heard.answerAfter(INVALID, COMPLETED).isCreatedNotify());
        equal("logins", logins.count(), 2);
        must(client.getKVClient().put(t.key("k"), bytes("v")));
        equal("an event", text(heard.events(1).get(0).getKeyValue().getValue()), "v");
    }

    private static void withCertificate(T t) throws Exception {
        Client client = t.secure("alice", builder -> builder);
        Heard heard = start(t, client, prefix());
        holds("created", heard.answer().isCreatedNotify());
        must(client.getKVClient().put(t.key("k"), bytes("v")));
        equal("an event", text(heard.events(1).get(0).getKeyValue().getValue()), "v");
    }

    /** The member is killed and started: both watches go on where they were, and nothing comes twice. */
    private static void resumes(T t) throws Exception {
        Client plain = t.user();
        Client secure = t.secure("alice", builder -> builder);
        Heard[] watches = {start(t, plain, prefix()), start(t, secure, prefix())};
        for (Heard heard : watches) {
            holds("created", heard.answer().isCreatedNotify());
        }
        must(plain.getKVClient().put(t.key("k"), bytes("1")));
        for (Heard heard : watches) {
            equal("before", text(heard.events(1).get(0).getKeyValue().getValue()), "1");
        }
        T.tell("kill");
        String broken = "UNAVAILABLE";
        for (Heard heard : watches) {
            List<String> why = faults(heard.error());
            holds("broken: " + why, why.stream().anyMatch(one -> one.startsWith(broken)));
        }
        T.tell("start");
        // Written while the watches may not be back yet.
        T.until("the member writes", () -> {
            try {
                must(t.user().getKVClient().put(t.key("k"), bytes("2")));
                return true;
            } catch (T.Failure starting) {
                return false;
            }
        });
        must(t.user().getKVClient().put(t.key("k"), bytes("3")));
        for (Heard heard : watches) {
            // etcd has forgotten the token: jetcd hears that as it tries again, and logs in.
            WatchResponse answer = heard.answerAfter(broken, INVALID);
            holds("created again", answer.isCreatedNotify());
            List<String> values = new ArrayList<>();
            // A put whose answer was lost was tried once more.
            while (!values.contains("3")) {
                answer = heard.answer();
                answer.getEvents().forEach(event -> values.add(text(event.getKeyValue().getValue())));
            }
            holds("all that was written, and nothing of before: " + values,
                values.get(0).equals("2") && values.stream().filter("3"::equals).count() == 1);
        }
    }
}
