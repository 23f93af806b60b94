//! JSON as Go writes it: some characters of strings are escaped that need not be.

/// Escapes what Go escapes, so that the bytes are those that etcd would have stored. These characters occur only in strings.
pub(super) fn as_go(json: Vec<u8>) -> Vec<u8> {
    if !json
        .iter()
        .any(|byte| matches!(byte, b'<' | b'>' | b'&' | 0xe2))
    {
        return json;
    }
    let mut escaped = Vec::with_capacity(json.len() + 16);
    let mut rest = json.as_slice();
    while let Some((first, next)) = rest.split_first() {
        let (text, bytes): (&[u8], _) = match (first, next) {
            (b'<', _) => (b"\\u003c", 1),
            (b'>', _) => (b"\\u003e", 1),
            (b'&', _) => (b"\\u0026", 1),
            (0xe2, [0x80, 0xa8, ..]) => (b"\\u2028", 3),
            (0xe2, [0x80, 0xa9, ..]) => (b"\\u2029", 3),
            _ => (&rest[..1], 1),
        };
        escaped.extend_from_slice(text);
        rest = &rest[bytes..];
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::as_go;

    #[test]
    fn characters_of_html_and_of_javascript_are_escaped() {
        let escape = |text: &str| String::from_utf8(as_go(text.into())).expect("text");
        assert_eq!(
            escape(r#"["a<b>&","€"]"#),
            r#"["a\u003cb\u003e\u0026","€"]"#
        );
        assert_eq!(
            escape("\"\u{2028}\u{2029}\u{2027}\""),
            "\"\\u2028\\u2029\u{2027}\""
        );
        assert_eq!(escape("{}"), "{}");
    }
}
