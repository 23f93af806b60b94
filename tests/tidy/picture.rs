//! The picture of actors and messages in `docs/architecture.md`, compared with the handlers in the code.

use super::source::Source;
use std::collections::BTreeSet;

/// An actor, and a message that it receives.
pub(crate) type Received = (String, String);

/// Messages that the picture leaves out, since an actor sends them to itself.
const OWN: [&str; 5] = [
    "FlushDue",
    "ForwardAnswered",
    "HashReceived",
    "LogReadEnded",
    "StartsWritten",
];

/// Messages that the text below the picture names: those of a stop, and questions of operators and tests.
const IN_TEXT: [&str; 7] = [
    "ClosePeers",
    "CountWatches",
    "DrainTail",
    "EndStreams",
    "HandOver",
    "ReadPeerStats",
    "SealLog",
];

/// What the picture of a page shows.
pub(crate) fn shown(page: &str) -> BTreeSet<Received> {
    let picture = page.split("```").find(|block| block.starts_with("mermaid"));
    let arrows = picture.unwrap_or_default().lines();
    let arrows = arrows.filter_map(|line| line.split_once(" -- ")?.1.split_once(" --> "));
    let received = arrows.flat_map(|(messages, actor)| {
        let messages = messages.trim_matches('"').replace("<br>", " ");
        let messages: Vec<_> = messages.split([',', ' ']).map(str::to_owned).collect();
        let named = messages.into_iter().filter(|message| !message.is_empty());
        named.map(|message| (actor.trim().to_owned(), message))
    });
    received.collect()
}

/// What the actors of the crate receive from others.
pub(crate) fn handled(files: &[Source]) -> BTreeSet<Received> {
    let actors = files
        .iter()
        .filter(|file| file.module[0] == "actors" && !file.for_tests);
    let code = actors.map(|file| {
        file.text
            .split("#[cfg(test)]\nmod tests {")
            .next()
            .unwrap_or("")
    });
    let handlers = code.flat_map(|code| {
        let lines = code.lines();
        lines.filter_map(|line| line.strip_prefix("impl Handler<")?.split_once("> for "))
    });
    let received = handlers.map(|(message, actor)| {
        let actor = actor.trim_end_matches([' ', '{']);
        (actor.to_owned(), message.to_owned())
    });
    let left_out = |message: &str| OWN.contains(&message) || IN_TEXT.contains(&message);
    // A store receives the requests of programs, one for each kind.
    let drawn = |(actor, message): &Received| actor != "Store" && !left_out(message);
    received.filter(drawn).collect()
}

/// Messages that the page should name outside the picture and does not.
pub(crate) fn unnamed(page: &str) -> Vec<&'static str> {
    let missing = IN_TEXT.into_iter();
    missing
        .filter(|message| !page.contains(&format!("`{message}`")))
        .collect()
}
