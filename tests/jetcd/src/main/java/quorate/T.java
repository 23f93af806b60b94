package quorate;

import io.etcd.jetcd.ByteSequence;
import io.etcd.jetcd.Client;
import io.etcd.jetcd.ClientBuilder;
import io.etcd.jetcd.common.exception.EtcdException;
import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientCall;
import io.grpc.ClientInterceptor;
import io.grpc.MethodDescriptor;
import io.grpc.Status;
import io.grpc.StatusException;
import io.grpc.StatusRuntimeException;
import java.io.BufferedReader;
import java.io.File;
import java.io.IOException;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Objects;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.function.UnaryOperator;

/** What one test gets: where the member is, a place among the keys of its own, and what checks answers. */
final class T implements AutoCloseable {
    /** Bounds each step: generous, for a loaded machine and a debug build. */
    private static final long PATIENCE_SECONDS = 60;
    /** Pause between two attempts at what becomes true by itself. */
    private static final long POLL_MS = 20;

    private static final BufferedReader INPUT =
        new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));

    /** A member's addresses, that of one whose unused tokens end after seconds, and the folder with certificates. */
    record Place(String plain, String secure, String brief, Path certificates) {
    }

    /** Why a test failed. */
    static final class Failure extends RuntimeException {
        private static final long serialVersionUID = 1;

        Failure(String why) {
            super(why);
        }
    }

    /** Counts logins: jetcd makes them by itself, on the channel of its other calls. */
    static final class Logins implements ClientInterceptor {
        private final AtomicInteger count = new AtomicInteger();

        int count() {
            return count.get();
        }

        @Override
        public <A, B> ClientCall<A, B> interceptCall(MethodDescriptor<A, B> method, CallOptions options, Channel next) {
            if (method.getFullMethodName().endsWith("/Authenticate")) {
                count.incrementAndGet();
            }
            return next.newCall(method, options);
        }
    }

    final Place place;
    /** All keys of the test begin with it. */
    final String prefix;
    private final List<AutoCloseable> ends = new ArrayList<>();

    T(Place place, String prefix) {
        this.place = place;
        this.prefix = prefix;
    }

    // ---- Clients ----

    static ByteSequence bytes(String text) {
        return ByteSequence.from(text, StandardCharsets.UTF_8);
    }

    /** A key of this test. */
    ByteSequence key(String name) {
        return bytes(prefix + name);
    }

    static String text(ByteSequence bytes) {
        return bytes.toString(StandardCharsets.UTF_8);
    }

    /** A client of the plain address, with what is changed in its settings. */
    Client plain(UnaryOperator<ClientBuilder> change) {
        return keep(change.apply(Client.builder().endpoints(place.plain())).build());
    }

    /** A client that logs in over the plain address. */
    Client as(String user, String password) {
        return plain(builder -> builder.user(bytes(user)).password(bytes(password)));
    }

    /** The client of most tests: a user who may do everything below {@link #prefix}. */
    Client user() {
        return as("user", Rights.PASSWORD);
    }

    Client root() {
        return as("root", Rights.PASSWORD);
    }

    /** A client over TLS that shows a certificate with this name, or none. */
    Client secure(String name, UnaryOperator<ClientBuilder> change) throws IOException {
        ClientBuilder builder = Client.builder().endpoints(place.secure()).sslContext(context -> {
            context.trustManager(file("ca.pem"));
            if (name != null) {
                context.keyManager(file(name + ".pem"), file(name + "-key.pem"));
            }
        });
        return keep(change.apply(builder).build());
    }

    private File file(String name) {
        return place.certificates().resolve(name).toFile();
    }

    /** Closes this when the test ends. */
    <C extends AutoCloseable> C keep(C what) {
        ends.add(what);
        return what;
    }

    @Override
    public void close() {
        for (AutoCloseable end : ends) {
            try {
                end.close();
            } catch (Exception ignored) {
                // The test has its result by now.
            }
        }
    }

    // ---- Answers ----

    static void holds(String what, boolean is) {
        if (!is) {
            throw new Failure("not so: " + what);
        }
    }

    static void equal(String what, Object got, Object wanted) {
        if (!Objects.equals(got, wanted)) {
            throw new Failure(what + ": got " + got + ", want " + wanted);
        }
    }

    /** The value of a call that succeeds. */
    static <V> V must(CompletableFuture<V> call) throws InterruptedException {
        try {
            return call.get(PATIENCE_SECONDS, TimeUnit.SECONDS);
        } catch (ExecutionException why) {
            throw new Failure("refused: " + faults(why) + at());
        } catch (TimeoutException late) {
            throw new Failure("no answer" + at());
        }
    }

    /** Checks that a call fails with this code and this text. */
    static void refused(String what, CompletableFuture<?> call, Status.Code code, String text) throws InterruptedException {
        try {
            Object got = call.get(PATIENCE_SECONDS, TimeUnit.SECONDS);
            throw new Failure(what + ": got " + got + ", want " + code + ": " + text);
        } catch (ExecutionException why) {
            List<String> faults = faults(why);
            if (!faults.contains(code + ": " + text)) {
                throw new Failure(what + ": got " + faults + ", want " + code + ": " + text);
            }
        } catch (TimeoutException late) {
            throw new Failure(what + ": no answer");
        }
    }

    /** Code and text of each error that led to this one, as far as they have some. */
    static List<String> faults(Throwable why) {
        List<String> all = new ArrayList<>();
        for (Throwable one = why; one != null; one = one.getCause()) {
            if (one instanceof StatusRuntimeException status) {
                all.add(said(status.getStatus()));
            } else if (one instanceof StatusException status) {
                all.add(said(status.getStatus()));
            } else if (one instanceof EtcdException status) {
                all.add(status.getErrorCode() + ": " + status.getMessage());
            } else if (one.getCause() == null) {
                all.add(one.toString());
            }
        }
        return all;
    }

    private static String said(Status status) {
        return status.getCode() + ": " + status.getDescription();
    }

    /** The line of the test that asked. */
    private static String at() {
        for (StackTraceElement element : new Throwable().getStackTrace()) {
            if (!element.getClassName().equals(T.class.getName())) {
                return " at " + element.getFileName() + ":" + element.getLineNumber();
            }
        }
        return "";
    }

    // ---- What happens by itself ----

    interface Condition {
        boolean holds() throws Exception;
    }

    /** Asks again and again until it is so. */
    static void until(String what, Condition is) throws Exception {
        long start = System.nanoTime();
        while (!is.holds()) {
            if (System.nanoTime() - start > Duration.ofSeconds(PATIENCE_SECONDS).toNanos()) {
                throw new Failure("never: " + what);
            }
            Thread.sleep(POLL_MS);
        }
    }

    /** The next thing that comes. */
    static <V> V next(String what, BlockingQueue<V> from) throws InterruptedException {
        V value = from.poll(PATIENCE_SECONDS, TimeUnit.SECONDS);
        if (value == null) {
            throw new Failure(what + ": nothing came");
        }
        return value;
    }

    /** Asks the caller for something and waits until it is done. */
    static void tell(String what) throws IOException {
        System.out.println(what + " 0");
        System.out.flush();
        if (INPUT.readLine() == null) {
            throw new Failure("nobody there to " + what);
        }
    }
}
