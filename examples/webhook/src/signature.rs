//! Signing, by the specification of Standard Webhooks.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

/// What a secret starts with, before its base64.
const PREFIX: &str = "whsec_";

/// How many bytes the specification allows a secret to have.
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// A secret that is not valid. Does not hold it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SecretError;

impl fmt::Display for SecretError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the secret is not valid: give whsec_ and 24 to 64 random bytes in base64")
    }
}

impl std::error::Error for SecretError {}

/// The key of a symmetric signature.
#[derive(Clone)]
pub struct SigningKey(Hmac<Sha256>);

impl SigningKey {
    /// The key of a secret, `whsec_` and base64.
    pub fn new(secret: &str) -> Result<Self, SecretError> {
        let text = secret.strip_prefix(PREFIX).ok_or(SecretError)?;
        let bytes = BASE64.decode(text).map_err(|_| SecretError)?;
        if !SECRET_BYTES.contains(&bytes.len()) {
            return Err(SecretError);
        }
        Hmac::new_from_slice(&bytes).map(Self).map_err(|_| SecretError)
    }

    /// The value of `webhook-signature` for a message.
    pub fn sign(&self, id: &str, timestamp_s: u64, payload: &[u8]) -> String {
        let mut mac = self.0.clone();
        mac.update(format!("{id}.{timestamp_s}.").as_bytes());
        mac.update(payload);
        format!("v1,{}", BASE64.encode(mac.finalize().into_bytes()))
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey(<hidden>)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    /// The example that the specification's own libraries test themselves with.
    #[test]
    fn the_signature_is_that_of_the_specification() {
        let signature = SigningKey::new(SECRET).unwrap().sign(
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            br#"{"test": 2432232314}"#,
        );
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn every_part_is_signed() {
        let key = SigningKey::new(SECRET).unwrap();
        let signature = key.sign("a", 1, b"p");
        assert_ne!(signature, key.sign("b", 1, b"p"));
        assert_ne!(signature, key.sign("a", 2, b"p"));
        assert_ne!(signature, key.sign("a", 1, b"q"));
        let other = SigningKey::new("whsec_NfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        assert_ne!(signature, other.sign("a", 1, b"p"));
    }

    #[test]
    fn a_secret_that_is_none_is_refused_and_none_is_shown() {
        for secret in ["", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_", "whsec_c2hvcnQ=", "whsec_no base64"]
        {
            assert_eq!(SigningKey::new(secret).unwrap_err(), SecretError, "{secret}");
        }
        assert_eq!(format!("{:?}", SigningKey::new(SECRET).unwrap()), "SigningKey(<hidden>)");
    }
}
