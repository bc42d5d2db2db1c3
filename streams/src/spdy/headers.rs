//! The name/value header block (section 2.6.10): one zlib stream for each direction of a connection, with a dictionary
//! that both ends know, flushed after each block.

use super::SpdyError;
use bytes::{Buf, BufMut, BytesMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// The longest block that is decompressed; the ones of Kubernetes are around a hundred bytes.
pub const MAX_BLOCK: usize = 64 * 1024;

/// Names, lower case on the wire, and values.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Headers(pub Vec<(String, String)>);

impl Headers {
    /// # Examples
    /// ```
    /// let headers = streams::spdy::Headers::of(&[("streamType", "stdout")]);
    /// assert_eq!(headers.first("StreamType"), Some("stdout"));
    /// ```
    pub fn of(pairs: &[(&str, &str)]) -> Self {
        Self(pairs.iter().map(|(name, value)| (name.to_ascii_lowercase(), (*value).to_owned())).collect())
    }

    /// The value of the first header of this name, whatever its case.
    pub fn first(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    fn to_block(&self) -> BytesMut {
        let mut block = BytesMut::new();
        block.put_u32(self.0.len() as u32);
        for (name, value) in &self.0 {
            for text in [name, value] {
                block.put_u32(text.len() as u32);
                block.put_slice(text.as_bytes());
            }
        }
        block
    }

    fn from_block(mut block: &[u8]) -> Result<Self, SpdyError> {
        let count = block.try_get_u32().map_err(|_| SpdyError::Headers)?;
        let mut text = || {
            let len = block.try_get_u32().map_err(|_| SpdyError::Headers)? as usize;
            let (text, rest) = block.split_at_checked(len).ok_or(SpdyError::Headers)?;
            block = rest;
            String::from_utf8(text.to_vec()).map_err(|_| SpdyError::Headers)
        };
        // Each pair takes at least eight bytes of a bounded block, so a count that lies ends in an error soon.
        (0..count).map(|_| Ok((text()?, text()?))).collect::<Result<_, _>>().map(Self)
    }
}

/// Compresses the blocks that one end sends.
pub struct Deflater(Compress);

impl Deflater {
    pub fn new() -> Self {
        let mut compress = Compress::new(Compression::best(), true);
        // It can only fail on a stream that has begun.
        let _ = compress.set_dictionary(&dictionary());
        Self(compress)
    }

    pub fn deflate(&mut self, headers: &Headers) -> Vec<u8> {
        let block = headers.to_block();
        let mut input = &block[..];
        let mut out = Vec::with_capacity(block.len() + 64);
        loop {
            out.reserve(64);
            let before = self.0.total_in();
            // Deflate fails only where its own state is broken, which safe code cannot bring about.
            let status = self.0.compress_vec(input, &mut out, FlushCompress::Sync);
            input = &input[(self.0.total_in() - before) as usize..];
            let flushed = input.is_empty() && out.len() < out.capacity();
            if flushed || !matches!(status, Ok(Status::Ok)) {
                return out;
            }
        }
    }
}

/// Decompresses the blocks that one end receives.
pub struct Inflater(Decompress);

impl Inflater {
    pub fn new() -> Self {
        Self(Decompress::new(true))
    }

    pub fn inflate(&mut self, mut input: &[u8]) -> Result<Headers, SpdyError> {
        let mut block = Vec::with_capacity(256);
        loop {
            if block.len() == block.capacity() {
                block.reserve(block.len());
            }
            let (before_in, before_out) = (self.0.total_in(), block.len());
            let result = self.0.decompress_vec(input, &mut block, FlushDecompress::Sync);
            input = &input[(self.0.total_in() - before_in) as usize..];
            match result {
                Err(e) if e.needs_dictionary().is_some() => {
                    self.0.set_dictionary(&dictionary()).map_err(|_| SpdyError::Compression)?;
                    continue;
                }
                Err(_) | Ok(Status::StreamEnd) => return Err(SpdyError::Compression),
                Ok(Status::Ok | Status::BufError) => {}
            }
            if block.len() > MAX_BLOCK {
                return Err(SpdyError::HeadersTooLong);
            }
            let stuck = self.0.total_in() == before_in && block.len() == before_out;
            if block.len() < block.capacity() && (input.is_empty() || stuck) {
                break;
            }
        }
        if !input.is_empty() {
            return Err(SpdyError::Compression);
        }
        Headers::from_block(&block)
    }
}

/// What both compressors start from: words, each behind its length, then a text of common values.
fn dictionary() -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1423);
    for word in WORDS.split('|') {
        bytes.put_u32(word.len() as u32);
        bytes.put_slice(word.as_bytes());
    }
    bytes.put_slice(TAIL.as_bytes());
    bytes
}

const WORDS: &str = "options|head|post|put|delete|trace|accept|accept-charset|accept-encoding|accept-language|\
    accept-ranges|age|allow|authorization|cache-control|connection|content-base|content-encoding|content-language|\
    content-length|content-location|content-md5|content-range|content-type|date|etag|expect|expires|from|host|\
    if-match|if-modified-since|if-none-match|if-range|if-unmodified-since|last-modified|location|max-forwards|pragma|\
    proxy-authenticate|proxy-authorization|range|referer|retry-after|server|te|trailer|transfer-encoding|upgrade|\
    user-agent|vary|via|warning|www-authenticate|method|get|status|200 OK|version|HTTP/1.1|url|public|set-cookie|\
    keep-alive|origin";

const TAIL: &str = "1001012012022052063003023033043053063074024054064074084094104114124134144154164175025045052\
    03 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden\
    404 Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug \
    Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,\
    application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdch\
    charset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dictionary_is_the_one_of_the_specification() {
        let (mut a, mut b) = (1u32, 0u32);
        for byte in dictionary() {
            a = (a + u32::from(byte)) % 65521;
            b = (b + a) % 65521;
        }
        assert_eq!((dictionary().len(), (b << 16) | a), (1423, 0xe3c6_a7c2));
    }

    /// Two blocks in a row, as Go's compressor (client-go through spdystream) wrote them.
    #[test]
    fn reads_what_go_writes() {
        let mut inflater = Inflater::new();
        for (hex, kind) in GO_BLOCKS {
            let bytes: Vec<u8> =
                (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect();
            assert_eq!(inflater.inflate(&bytes).unwrap(), Headers::of(&[("streamtype", kind)]));
        }
    }

    const GO_BLOCKS: [(&str, &str); 2] = [
        ("78f9e3c6a7c26260606004a7b392a2d4c45c6851c29a0a0a6800000000ffff", "error"),
        ("c22e555c92929907000000ffff", "stdin"),
    ];

    #[test]
    fn a_bomb_is_refused() {
        let mut deflater = Deflater::new();
        let bomb = deflater.deflate(&Headers::of(&[("a", &"x".repeat(MAX_BLOCK))]));
        assert!(bomb.len() < 1024);
        assert_eq!(Inflater::new().inflate(&bomb), Err(SpdyError::HeadersTooLong));
    }
}
