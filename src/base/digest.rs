//! A SHA-256 as its 32 bytes: a bundle may have 200,000 of them, and as text each takes three times as much.
//! Refuses other lengths.

use crate::base::fsx;
use std::fmt;

/// A SHA-256. The default is no file's.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Digest([u8; 32]);

impl Digest {
    /// None: the text is not 64 hexadecimal digits.
    pub fn of_hex(text: &str) -> Option<Digest> {
        fsx::from_hex(text)?.try_into().ok().map(Digest)
    }
}

impl From<[u8; 32]> for Digest {
    fn from(bytes: [u8; 32]) -> Digest {
        Digest(bytes)
    }
}

/// In lower-case hex, as receipts and records have it.
impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl PartialEq<str> for Digest {
    fn eq(&self, text: &str) -> bool {
        Digest::of_hex(text) == Some(*self)
    }
}

impl PartialEq<Digest> for String {
    fn eq(&self, digest: &Digest) -> bool {
        digest == self.as_str()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_text_that_it_was_read_from() {
        let text = fsx::sha256(b"x");
        let digest = Digest::of_hex(&text).unwrap();
        assert_eq!(digest.to_string(), text);
        assert!(text == digest && digest == *text.as_str() && digest != Digest::default());
        assert_eq!((Digest::of_hex(""), Digest::of_hex(&text[2..])), (None, None));
    }
}
