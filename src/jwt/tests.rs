//! Tokens and key files, against OpenSSL's and by hand.

use super::*;
use base64::Engine;
use std::process::Command;

const NOW: Duration = Duration::from_secs(1_000_000);

/// Runs `openssl` in a directory of its own and returns its files.
fn openssl(script: &str) -> impl Fn(&str) -> Vec<u8> + use<> {
    let dir = tempfile::tempdir().unwrap();
    for line in script
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
    {
        let run = Command::new("openssl")
            .args(line.split(' '))
            .current_dir(dir.path())
            .output();
        let run = run.expect("these tests need openssl");
        assert!(
            run.status.success(),
            "{line}: {}",
            String::from_utf8_lossy(&run.stderr)
        );
    }
    move |name| std::fs::read(dir.path().join(name)).unwrap()
}

fn claims() -> Claims {
    Claims {
        username: "u, \"quoted\".0,".into(),
        revision: 7,
        expires: Some(NOW + Duration::from_mins(5)),
        cluster: Some("cdf818194e3a8c32".into()),
    }
}

/// The claims alone.
fn verify(keys: &[VerifyingKey], token: &[u8], now: Duration) -> Result<Claims, TokenError> {
    super::verify(keys, token, now).map(|(claims, _)| claims)
}

/// The key in a file that holds one.
fn read_one(algorithm: Algorithm, file: &[u8]) -> Result<VerifyingKey, KeyError> {
    let mut keys = VerifyingKey::read_all(algorithm, file)?.keys;
    assert_eq!(keys.len(), 1);
    Ok(keys.remove(0))
}

fn checked(key: &VerifyingKey, token: &str) -> Result<Claims, TokenError> {
    verify(std::slice::from_ref(key), token.as_bytes(), NOW)
}

/// Signs and verifies with a private key's file, and the public key's file alone.
fn both_ways(algorithm: &str, private: &[u8], public: &[u8]) {
    let algorithm = Algorithm::named(algorithm).unwrap();
    let signing = SigningKey::read(algorithm, private).unwrap();
    let token = sign(&signing, &claims()).unwrap();
    assert!(is_jwt(token.as_bytes()), "{token}");
    assert_eq!(checked(&signing.verifying(), &token), Ok(claims()));
    let verifying = read_one(algorithm, public).unwrap();
    assert_eq!(checked(&verifying, &token), Ok(claims()), "{algorithm:?}");
    let mut forged = token.clone().into_bytes();
    let at = token.rfind('.').unwrap() + 2;
    forged[at] = if forged[at] == b'A' { b'B' } else { b'A' };
    let refused = verify(&[verifying], &forged, NOW);
    assert_eq!(refused, Err(TokenError::Signature), "{algorithm:?}");
}

#[test]
fn every_algorithm_signs_and_verifies_with_the_files_of_openssl() {
    let rsa = openssl(
        "genrsa -out pkcs8.pem 2048
         rsa -in pkcs8.pem -traditional -out pkcs1.pem
         rsa -in pkcs8.pem -pubout -out public.pem
         rsa -in pkcs8.pem -RSAPublicKey_out -out public1.pem
         req -x509 -new -key pkcs8.pem -subj /CN=x -out cert.pem",
    );
    for algorithm in ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"] {
        both_ways(algorithm, &rsa("pkcs8.pem"), &rsa("public.pem"));
    }
    both_ways("RS256", &rsa("pkcs1.pem"), &rsa("public1.pem"));
    both_ways("PS256", &rsa("pkcs1.pem"), &rsa("cert.pem"));
    for (algorithm, curve) in [("ES256", "prime256v1"), ("ES384", "secp384r1")] {
        let ec = openssl(&format!(
            "ecparam -genkey -name {curve} -out sec1.pem
             pkcs8 -topk8 -nocrypt -in sec1.pem -out pkcs8.pem
             ec -in sec1.pem -pubout -out public.pem",
        ));
        both_ways(algorithm, &ec("sec1.pem"), &ec("public.pem"));
        both_ways(algorithm, &ec("pkcs8.pem"), &ec("public.pem"));
    }
    let ed = openssl(
        "genpkey -algorithm ed25519 -out private.pem
         pkey -in private.pem -pubout -out public.pem",
    );
    both_ways("EdDSA", &ed("private.pem"), &ed("public.pem"));
    for algorithm in ["HS256", "HS384", "HS512"] {
        both_ways(algorithm, b"a secret\n", b"a secret\n");
    }
}

#[test]
fn a_key_of_another_kind_is_refused_with_the_reason() {
    let files = openssl(
        "genrsa -out rsa.pem 2048
         genrsa -out short.pem 1024
         rsa -in rsa.pem -pubout -out rsa.pub
         ecparam -genkey -name secp384r1 -out ec.pem
         ec -in ec.pem -pubout -out ec.pub
         pkcs8 -topk8 -in rsa.pem -passout pass:x -out encrypted.pem",
    );
    let private = [
        ("RS256", b"".to_vec(), "the file is empty"),
        ("RS256", b"nonsense".to_vec(), "no private key in PEM"),
        ("RS256", files("rsa.pub"), "no private key in PEM"),
        ("RS256", files("ec.pem"), "it is in a block EC PRIVATE KEY"),
        ("RS256", files("short.pem"), "it is too short"),
        ("RS256", files("encrypted.pem"), "it is encrypted"),
        ("ES256", files("ec.pem"), "cannot be used for ES256"),
        ("ES384", files("rsa.pem"), "cannot be used for ES384"),
        ("EdDSA", files("rsa.pem"), "cannot be used for EdDSA"),
        ("HS256", files("rsa.pem"), "takes a secret"),
        ("HS256", b"".to_vec(), "the file is empty"),
    ];
    for (algorithm, file, reason) in private {
        let read = SigningKey::read(Algorithm::named(algorithm).unwrap(), &file);
        let error = read.unwrap_err().to_string();
        assert!(error.contains(reason), "{algorithm}: {error}");
    }
    let public = [
        ("RS256", b"".to_vec(), "the file is empty"),
        ("RS256", files("rsa.pem"), "no public key in PEM"),
        ("RS256", files("ec.pub"), "another kind"),
        ("ES256", files("ec.pub"), "another kind"),
        ("EdDSA", files("rsa.pub"), "another kind"),
        ("HS256", files("rsa.pub"), "takes a secret"),
    ];
    for (algorithm, file, reason) in public {
        let read = read_one(Algorithm::named(algorithm).unwrap(), &file);
        let error = read.unwrap_err().to_string();
        assert!(error.contains(reason), "{algorithm}: {error}");
    }
    assert_eq!(Algorithm::named("none"), None);
    assert_eq!(Algorithm::named("rs256"), None, "as etcd spells them");
}

/// A public key without anything wrong around it: that of a file in DER, changed.
fn changed(tag: &str, der: &[u8], change: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
    let mut der = der.to_vec();
    change(&mut der);
    pem::encode(&pem::Pem::new(tag, der)).into_bytes()
}

fn read_public(algorithm: &str, file: &[u8]) -> Option<String> {
    let read = read_one(Algorithm::named(algorithm).unwrap(), file);
    read.err().map(|error| error.to_string())
}

#[test]
fn an_rsa_key_that_can_verify_nothing_is_refused() {
    let files = openssl(
        "genrsa -out short.pem 1024
         rsa -in short.pem -pubout -out short.pub
         rsa -in short.pem -RSAPublicKey_out -out short1.pub
         req -x509 -new -key short.pem -subj /CN=x -out short.cert
         genrsa -out rsa.pem 2048
         rsa -in rsa.pem -RSAPublicKey_out -outform DER -out rsa.der",
    );
    let with = |change: &dyn Fn(&mut Vec<u8>)| changed("RSA PUBLIC KEY", &files("rsa.der"), change);
    let flip = |der: &mut Vec<u8>| *der.last_mut().unwrap() ^= 1;
    for (algorithm, file, reason) in [
        ("RS256", files("short.pub"), "it is too short"),
        ("PS512", files("short1.pub"), "it is too short"),
        ("RS256", files("short.cert"), "it is too short"),
        ("RS256", with(&|der| der.push(0)), "it is malformed"),
        ("RS256", with(&|der| der.truncate(100)), "it is malformed"),
        ("RS256", with(&flip), "its numbers are no RSA key"),
    ] {
        let error = read_public(algorithm, &file).unwrap();
        assert!(error.contains(reason), "{algorithm}: {error}");
    }
    assert_eq!(read_public("RS256", &with(&|_| ())), None);
}

#[test]
fn a_point_that_can_verify_nothing_is_refused() {
    let files = openssl(
        "ecparam -genkey -name prime256v1 -out ec.pem
         ec -in ec.pem -pubout -outform DER -out ec.der
         ec -in ec.pem -pubout -conv_form compressed -out compressed.pub
         genpkey -algorithm ed25519 -out ed.pem
         pkey -in ed.pem -pubout -outform DER -out ed.der",
    );
    let with =
        |file: &str, change: &dyn Fn(&mut Vec<u8>)| changed("PUBLIC KEY", &files(file), change);
    let flip = |der: &mut Vec<u8>| *der.last_mut().unwrap() ^= 1;
    let shorten = |der: &mut Vec<u8>| {
        der.truncate(der.len() - 1);
        // The lengths of the whole and of the key.
        der[1] -= 1;
        der[10] -= 1;
    };
    for (algorithm, file, reason) in [
        (
            "ES256",
            files("compressed.pub"),
            "it is no uncompressed point",
        ),
        (
            "ES256",
            with("ec.der", &flip),
            "its point is not on the curve",
        ),
        (
            "EdDSA",
            with("ed.der", &shorten),
            "it does not have 32 bytes",
        ),
    ] {
        let error = read_public(algorithm, &file).unwrap();
        assert!(error.contains(reason), "{algorithm}: {error}");
    }
    assert_eq!(read_public("ES256", &with("ec.der", &|_| ())), None);
    assert_eq!(read_public("EdDSA", &with("ed.der", &|_| ())), None);
}

fn hs256(secret: &str) -> SigningKey {
    SigningKey::read(Algorithm::Hs256, secret.as_bytes()).unwrap()
}

/// A token with this header and these claims, signed with `secret`.
fn token(header: &str, claims: &str, secret: &str) -> String {
    let message = format!("{}.{}", BASE64URL.encode(header), BASE64URL.encode(claims));
    let signature = hs256(secret).sign(message.as_bytes()).unwrap();
    format!("{message}.{}", BASE64URL.encode(signature))
}

const HEADER: &str = r#"{"alg":"HS256","typ":"JWT"}"#;

#[test]
fn claims_are_etcds() {
    let key = hs256("s").verifying();
    let good = [
        (
            r#"{"username":"u","revision":7,"exp":1000001}"#,
            7,
            Some(1_000_001),
        ),
        (
            r#"{"revision":7.9,"username":"u","other":[{}],"iat":99999999999}"#,
            7,
            None,
        ),
        (r#"{"username":"u","revision":0,"nbf":1000000}"#, 0, None),
    ];
    for (text, revision, expires) in good {
        let expected = Claims {
            username: "u".into(),
            revision,
            expires: expires.map(Duration::from_secs),
            cluster: None,
        };
        assert_eq!(
            checked(&key, &token(HEADER, text, "s")),
            Ok(expected),
            "{text}"
        );
    }
    let bad = [
        (
            r#"{"username":"u","revision":7,"exp":1000000}"#,
            TokenError::Time { end: NOW },
        ),
        (
            r#"{"username":"u","revision":7,"nbf":1000001}"#,
            TokenError::NotYet {
                begin: NOW + Duration::from_secs(1),
            },
        ),
        (
            r#"{"username":"u","revision":7,"exp":"1000001"}"#,
            TokenError::Malformed,
        ),
        (
            r#"{"username":"u","revision":7,"exp":-1}"#,
            TokenError::Malformed,
        ),
        // Otherwise it would never end.
        (
            r#"{"username":"u","revision":7,"exp":null}"#,
            TokenError::Malformed,
        ),
        (r#"{"username":"u","revision":-1}"#, TokenError::Malformed),
        (
            r#"{"username":"u","revision":1e300}"#,
            TokenError::Malformed,
        ),
        (r#"{"username":"u","revision":"7"}"#, TokenError::Malformed),
        (r#"{"username":7,"revision":7}"#, TokenError::Malformed),
        (r#"{"username":"u"}"#, TokenError::Malformed),
        (r#"{"revision":7}"#, TokenError::Malformed),
        (r#"["u",7]"#, TokenError::Malformed),
        ("", TokenError::Malformed),
        ("{", TokenError::Malformed),
    ];
    for (text, expected) in bad {
        assert_eq!(
            checked(&key, &token(HEADER, text, "s")),
            Err(expected),
            "{text}"
        );
    }
}

#[test]
fn the_algorithm_is_the_settings() {
    const CLAIMS: &str = r#"{"username":"root","revision":7}"#;
    let rsa = openssl("genrsa -out rsa.pem 2048\nrsa -in rsa.pem -pubout -out rsa.pub");
    let key = read_one(Algorithm::Rs256, &rsa("rsa.pub")).unwrap();
    // The public key as a secret.
    let public = String::from_utf8(rsa("rsa.pub")).unwrap();
    let message = format!("{}.{}", BASE64URL.encode(HEADER), BASE64URL.encode(CLAIMS));
    let secret = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, public.as_bytes());
    let signature = ring::hmac::sign(&secret, message.as_bytes());
    let confused = format!("{message}.{}", BASE64URL.encode(signature));
    assert_eq!(checked(&key, &confused), Err(TokenError::OtherAlgorithm));
    let named = r#"{"alg":"RS256"}"#;
    let message = format!("{}.{}", BASE64URL.encode(named), BASE64URL.encode(CLAIMS));
    let signature = ring::hmac::sign(&secret, message.as_bytes());
    let renamed = format!("{message}.{}", BASE64URL.encode(signature));
    assert_eq!(checked(&key, &renamed), Err(TokenError::Signature));
    for alg in ["none", "None", "", "rs256", "RS384", "PS256"] {
        let header = BASE64URL.encode(format!(r#"{{"alg":"{alg}"}}"#));
        for signature in ["", "AAAA"] {
            let token = format!("{header}.{}.{signature}", BASE64URL.encode(CLAIMS));
            assert_eq!(
                checked(&key, &token),
                Err(TokenError::OtherAlgorithm),
                "{alg}"
            );
        }
    }
    // RS512 with the same key.
    let other = SigningKey::read(Algorithm::Rs512, &rsa("rsa.pem")).unwrap();
    let token = sign(&other, &claims()).unwrap();
    assert_eq!(checked(&key, &token), Err(TokenError::OtherAlgorithm));
    // An extension that must be understood.
    let key = hs256("s").verifying();
    let crit = token_with_crit();
    assert_eq!(checked(&key, &crit), Err(TokenError::Malformed));
}

fn token_with_crit() -> String {
    let header = r#"{"alg":"HS256","crit":["b64"],"b64":false}"#;
    token(header, r#"{"username":"root","revision":7}"#, "s")
}

#[test]
fn what_is_no_token_is_refused() {
    let key = hs256("s").verifying();
    let good = token(HEADER, r#"{"username":"u","revision":7}"#, "s");
    assert!(checked(&key, &good).is_ok());
    let long = token(
        HEADER,
        &format!(r#"{{"username":"{}","revision":7}}"#, "u".repeat(20_000)),
        "s",
    );
    let (message, signature) = good.rsplit_once('.').unwrap();
    for bad in [
        String::new(),
        "..".into(),
        "a.b.c".into(),
        "a.b".into(),
        message.into(),
        format!("{good}."),
        format!("{good}.x"),
        format!("{good}="),
        format!("{good} "),
        format!(" {good}"),
        format!("{message}.{signature}A"),
        format!("{message}."),
        good.replace('.', ".."),
        long,
    ] {
        let refused = checked(&key, &bad).unwrap_err();
        let expected = [TokenError::Malformed, TokenError::Signature];
        assert!(expected.contains(&refused), "{bad:.60}: {refused}");
    }
    assert!(verify(&[key], &[0xff; 100], NOW).is_err());
    assert!(!is_jwt(b"LJGLyuyZkmEocWcv.1548") && !is_jwt(b"") && is_jwt(good.as_bytes()));
}

#[test]
fn any_of_several_keys_verifies() {
    let [old, new, other] = ["old", "new", "other"].map(|secret| hs256(secret).verifying());
    let text = r#"{"username":"u","revision":7}"#;
    let tokens = ["old", "new"].map(|secret| token(HEADER, text, secret));
    for token in &tokens {
        assert!(verify(&[new.clone(), old.clone()], token.as_bytes(), NOW).is_ok());
        let refused = verify(std::slice::from_ref(&other), token.as_bytes(), NOW);
        assert_eq!(refused, Err(TokenError::Signature));
        assert_eq!(
            verify(&[], token.as_bytes(), NOW),
            Err(TokenError::OtherAlgorithm)
        );
    }
}

/// Streams ask later whether the key is still there.
#[test]
fn a_key_is_known_by_its_digest_whichever_file_it_is_from() {
    let text = r#"{"username":"u","revision":7}"#;
    let [old, new] = ["old", "new"].map(|secret| hs256(secret).verifying());
    assert_ne!(old.digest(), new.digest());
    let keys = [old, new];
    let by_new = token(HEADER, text, "new");
    let (_, key) = super::verify(&keys, by_new.as_bytes(), NOW).unwrap();
    let again = read_one(Algorithm::Hs256, b"new").unwrap();
    assert_eq!((&key, &key), (again.digest(), keys[1].digest()));
    let files = openssl(
        "genpkey -algorithm ed25519 -out 1.pem
         genpkey -algorithm ed25519 -out 2.pem
         pkey -in 1.pem -pubout -out 1.pub",
    );
    let [one, two] = ["1.pem", "2.pem"].map(|name| {
        let signing = SigningKey::read(Algorithm::EdDsa, &files(name)).unwrap();
        *signing.verifying().digest()
    });
    let public = read_one(Algorithm::EdDsa, &files("1.pub")).unwrap();
    assert_eq!(*public.digest(), one);
    assert_ne!(one, two);
}

/// The mode of such a file was not looked at.
#[test]
fn a_private_key_beside_public_ones_is_noticed() {
    let files = openssl(
        "ecparam -genkey -name prime256v1 -out sec1.pem
         ec -in sec1.pem -pubout -out public.pem",
    );
    let noticed = |file: &[u8]| {
        let read = VerifyingKey::read_all(Algorithm::Es256, file).unwrap();
        (read.keys.len(), read.has_private)
    };
    let (private, public) = (files("sec1.pem"), files("public.pem"));
    assert_eq!(noticed(&public), (1, false));
    assert_eq!(noticed(&[&*private, &*public].concat()), (1, true));
    assert_eq!(noticed(&[&*public, &*private].concat()), (1, true));
    let parameters = String::from_utf8(private).unwrap();
    let (parameters, _) = parameters.split_once("-----BEGIN EC PRIVATE").unwrap();
    let file = [parameters.as_bytes(), &*public].concat();
    assert_eq!(noticed(&file), (1, false), "a curve is no secret");
}

/// The second key was ignored.
#[test]
fn all_keys_of_a_file_count_or_none() {
    let files = openssl(
        "genpkey -algorithm ed25519 -out 1.pem
         genpkey -algorithm ed25519 -out 2.pem
         pkey -in 1.pem -pubout -out 1.pub
         pkey -in 2.pem -pubout -out 2.pub
         ecparam -genkey -name prime256v1 -out ec.pem
         ec -in ec.pem -pubout -out ec.pub
         req -x509 -new -key 1.pem -subj /CN=x -out cert.pem",
    );
    let read = |file: &[u8]| {
        let read = VerifyingKey::read_all(Algorithm::EdDsa, file);
        read.map(|file| file.keys)
    };
    let (one, two) = (files("1.pub"), files("2.pub"));
    let keys = read(&[b"a comment\n", &*one, &*two].concat()).unwrap();
    assert_eq!(keys.len(), 2);
    for private in ["1.pem", "2.pem"] {
        let signing = SigningKey::read(Algorithm::EdDsa, &files(private)).unwrap();
        let token = sign(&signing, &claims()).unwrap();
        assert_eq!(
            verify(&keys, token.as_bytes(), NOW),
            Ok(claims()),
            "{private}"
        );
    }
    let cut = &two[..two.len() - 10];
    let letters = String::from_utf8(two.clone())
        .unwrap()
        .replacen("\nM", "\n*", 1);
    for (second, reason) in [
        (cut, "a PEM block in it is malformed"),
        (letters.as_bytes(), "a PEM block in it is malformed"),
        (&*files("ec.pub"), "another kind"),
        (
            &b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"[..],
            "it holds a block X509 CRL",
        ),
        (&*files("cert.pem"), "a certificate beside other keys"),
    ] {
        let error = read(&[&*one, second].concat()).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
    let one_of = |file: &[u8]| read(file).map(|keys| keys.len());
    let beside = [&*files("1.pem"), &*one].concat();
    assert_eq!(one_of(&beside), Ok(1), "a private key is left out");
    let chain = [files("cert.pem"), files("cert.pem")].concat();
    assert_eq!(one_of(&chain), Ok(1), "a certificate's chain is left out");
    // A key after a certificate was dropped in silence.
    for certificates in [files("cert.pem"), chain] {
        let appended = [&*certificates, &*one].concat();
        assert_eq!(one_of(&appended), Err(KeyError::CertificateBeside));
    }
    let both = [files("1.pem"), files("2.pem")].concat();
    let error = SigningKey::read(Algorithm::EdDsa, &both).unwrap_err();
    assert_eq!(error, KeyError::SeveralPrivate);
}
