package quorate;

import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.regex.Pattern;

/**
 * jetcd, etcd's client for Java, against a member with authentication, and one whose tokens end soon: each test is a method
 * that fails with a message.
 *
 * <p>The program prints one line a test, {@code ok NAME} or {@code FAILED NAME: WHY}, and ends with 1 if one failed. A test that
 * needs the first member killed or started writes {@code kill 0} or {@code start 0} and waits for a line on standard input:
 * members are processes of the caller. What the tests want is what etcd does; the caller runs them against both.
 */
public final class Main {
    /** One test. */
    record Test(String name, Body body) {
        interface Body {
            void run(T t) throws Exception;
        }
    }

    private Main() {
    }

    /** All tests, in the order in which they run: the first ones make the users that the others are. */
    private static List<Test> all() {
        List<Test> tests = new ArrayList<>();
        tests.addAll(Rights.TESTS);
        tests.addAll(Certificates.TESTS);
        tests.addAll(Data.TESTS);
        tests.addAll(Watches.TESTS);
        tests.addAll(Leases.TESTS);
        tests.addAll(Members.TESTS);
        return tests;
    }

    public static void main(String[] args) {
        Map<String, String> given = new TreeMap<>();
        for (String arg : args) {
            String[] parts = arg.replaceFirst("^-+", "").split("=", 2);
            given.put(parts[0], parts.length == 2 ? parts[1] : "");
        }
        T.Place place = new T.Place(
            given.get("plain"), given.get("secure"), given.get("brief"), Path.of(given.get("certificates")));
        Pattern wanted = Pattern.compile(given.getOrDefault("run", ""));
        int failed = 0;
        for (Test test : all()) {
            if (!wanted.matcher(test.name()).find()) {
                continue;
            }
            String why = run(test, place);
            if (why == null) {
                System.out.println("ok " + test.name());
            } else {
                failed++;
                System.out.println("FAILED " + test.name() + ": " + why.replace('\n', ' '));
            }
            System.out.flush();
        }
        // What jetcd leaves running does not keep the program alive.
        System.exit(failed == 0 ? 0 : 1);
    }

    /** Runs one test and says why it failed, or nothing. */
    private static String run(Test test, T.Place place) {
        try (T t = new T(place, test.name() + "/")) {
            test.body().run(t);
            return null;
        } catch (T.Failure failure) {
            return failure.getMessage();
        } catch (Exception other) {
            StackTraceElement[] where = other.getStackTrace();
            return T.faults(other) + " " + (where.length == 0 ? "" : where[0].toString());
        }
    }
}
