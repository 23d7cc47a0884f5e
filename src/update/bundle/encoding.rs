//! Names of a zip as text: UTF-8 where the archive says so, else what the system that made it writes, or what the Unicode
//! Path field says.
//! Refuses to guess further: bytes that are not what the archive declares are no name.

/// The longest piece of a name that is shown, in characters: a hostile one may have 65,535.
const MAX_SHOWN: usize = 200;

/// What code page 437 has for the bytes 0x80 to 0xFF (the source is Unicode's `CP437.TXT`).
const CP437: &str = "\u{c7}\u{fc}\u{e9}\u{e2}\u{e4}\u{e0}\u{e5}\u{e7}\u{ea}\u{eb}\u{e8}\u{ef}\u{ee}\u{ec}\u{c4}\u{c5}\
                     \u{c9}\u{e6}\u{c6}\u{f4}\u{f6}\u{f2}\u{fb}\u{f9}\u{ff}\u{d6}\u{dc}\u{a2}\u{a3}\u{a5}\u{20a7}\u{192}\
                     \u{e1}\u{ed}\u{f3}\u{fa}\u{f1}\u{d1}\u{aa}\u{ba}\u{bf}\u{2310}\u{ac}\u{bd}\u{bc}\u{a1}\u{ab}\u{bb}\
                     \u{2591}\u{2592}\u{2593}\u{2502}\u{2524}\u{2561}\u{2562}\u{2556}\u{2555}\u{2563}\u{2551}\u{2557}\
                     \u{255d}\u{255c}\u{255b}\u{2510}\u{2514}\u{2534}\u{252c}\u{251c}\u{2500}\u{253c}\u{255e}\u{255f}\
                     \u{255a}\u{2554}\u{2569}\u{2566}\u{2560}\u{2550}\u{256c}\u{2567}\u{2568}\u{2564}\u{2565}\u{2559}\
                     \u{2558}\u{2552}\u{2553}\u{256b}\u{256a}\u{2518}\u{250c}\u{2588}\u{2584}\u{258c}\u{2590}\u{2580}\
                     \u{3b1}\u{df}\u{393}\u{3c0}\u{3a3}\u{3c3}\u{b5}\u{3c4}\u{3a6}\u{398}\u{3a9}\u{3b4}\u{221e}\u{3c6}\
                     \u{3b5}\u{2229}\u{2261}\u{b1}\u{2265}\u{2264}\u{2320}\u{2321}\u{f7}\u{2248}\u{b0}\u{2219}\u{b7}\
                     \u{221a}\u{207f}\u{b2}\u{25a0}\u{a0}";

/// What an archive says of its names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Charset {
    /// The flag for it is set.
    Utf8,
    /// Nothing, and it was made on Unix or macOS: `zip` and Archive Utility write names there as the system has them,
    /// which is UTF-8; what is none was taken over from DOS.
    OfUnix,
    /// Nothing, and it was made elsewhere: code page 437 (APPNOTE.TXT, appendix D).
    Dos,
}

/// The name of an entry. `unicode_path` is the extra field of that name (APPNOTE.TXT 4.6.9): its version, the CRC of the
/// name that it was made for, and that name in UTF-8. Errors: why it is no name.
pub(super) fn decode(raw: &[u8], said: Charset, unicode_path: Option<&[u8]>) -> Result<String, &'static str> {
    let is_utf8 = said == Charset::Utf8;
    let plain = match (said, std::str::from_utf8(raw)) {
        (Charset::Utf8 | Charset::OfUnix, Ok(text)) => text.to_string(),
        (Charset::Utf8, Err(_)) => return Err("it is said to be UTF-8, and is not"),
        (Charset::OfUnix, Err(_)) | (Charset::Dos, _) => raw.iter().map(|byte| of_cp437(*byte)).collect(),
    };
    let Some(field) = unicode_path else { return Ok(plain) };
    let (version, rest) = field.split_first().ok_or("its Unicode field is empty")?;
    let (crc, name) = rest.split_first_chunk().ok_or("its Unicode field is cut off")?;
    let mut sum = flate2::Crc::new();
    sum.update(raw);
    if *version != 1 || u32::from_le_bytes(*crc) != sum.sum() {
        return Err("its Unicode field was made for another name");
    }
    let name = std::str::from_utf8(name).map_err(|_| "its Unicode field is no UTF-8")?;
    if is_utf8 && name != plain { Err("its Unicode field has another one") } else { Ok(name.to_string()) }
}

fn of_cp437(byte: u8) -> char {
    match byte.checked_sub(0x80) {
        None => byte.into(),
        Some(at) => CP437.chars().nth(at.into()).unwrap_or(char::REPLACEMENT_CHARACTER),
    }
}

/// A name as it is shown.
pub(super) fn shown(name: &str) -> String {
    match name.char_indices().nth(MAX_SHOWN) {
        Some((end, _)) => format!("{}...", name.get(..end).unwrap_or_default()),
        None => name.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_page_has_a_character_for_each_byte() {
        assert_eq!(CP437.chars().count(), 128);
        let name: String = [b'a', 0x80, 0x9b, 0xb3, 0xe1, 0xff].into_iter().map(of_cp437).collect();
        assert_eq!(name, "a\u{c7}\u{a2}\u{2502}\u{df}\u{a0}");
    }

    #[test]
    fn a_unicode_field_counts_only_for_the_name_that_it_was_made_for() {
        let mut sum = flate2::Crc::new();
        sum.update(b"a?");
        let field = [&[1][..], &sum.sum().to_le_bytes(), "a\u{fc}".as_bytes()].concat();
        assert_eq!(decode(b"a?", Charset::Dos, Some(&field)).as_deref(), Ok("a\u{fc}"));
        assert!(decode(b"b?", Charset::Dos, Some(&field)).is_err());
        assert!(decode(b"a?", Charset::Utf8, Some(&field)).is_err());
        assert!(decode(b"a\xff", Charset::Utf8, None).is_err());
        assert_eq!(decode(b"a\x81", Charset::Dos, None).as_deref(), Ok("a\u{fc}"));
        assert_eq!(decode(b"a\x81", Charset::OfUnix, None).as_deref(), Ok("a\u{fc}"));
        assert_eq!(decode("a\u{fc}".as_bytes(), Charset::OfUnix, None).as_deref(), Ok("a\u{fc}"));
        assert_eq!(decode("a\u{fc}".as_bytes(), Charset::Dos, None).as_deref(), Ok("a\u{251c}\u{255d}"));
    }
}
