//! What Noise is made of, in versions that wipe what they held.
//!
//! `snow` brings primitives of its own, which leave private keys, shared secrets and cipher keys
//! behind in freed memory. These hold them in [`Zeroizing`] memory or inside `aws-lc`, which wipes
//! what it frees, and are several times as fast. What `snow` itself keeps (the chaining key, inside
//! its state) is overwritten by [`bury`].

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    agreement::{PrivateKey, UnparsedPublicKey, X25519, agree},
    digest, hmac,
};
use snow::{
    Error, HandshakeState,
    params::{CipherChoice, DHChoice, HashChoice},
    resolvers::CryptoResolver,
    types::{Cipher, Dh, Hash, Random},
};
use zeroize::{Zeroize, Zeroizing};

/// The secret a private and a public key share; `None` when there is none: a point of small order
/// gives everybody the same (RFC 7748, section 6.1).
pub(super) fn shared(private: &[u8; 32], public: &[u8; 32]) -> Option<Zeroizing<[u8; 32]>> {
    #[cfg(fuzzing)]
    return crate::fuzz::product((*private, Some(*public)), || {
        multiply(private, public).map(|s| *s)
    })
    .map(Into::into);
    #[cfg(not(fuzzing))]
    multiply(private, public)
}

fn multiply(private: &[u8; 32], public: &[u8; 32]) -> Option<Zeroizing<[u8; 32]>> {
    let private = PrivateKey::from_private_key(&X25519, private).ok()?;
    agree(&private, UnparsedPublicKey::new(&X25519, public), (), |secret| {
        let mut out = Zeroizing::new([0; 32]);
        if secret.len() != out.len() || secret.iter().all(|byte| *byte == 0) {
            return Err(());
        }
        out.copy_from_slice(secret);
        Ok(out)
    })
    .ok()
}

/// Primitives with the randomness of one ephemeral key.
pub(super) struct Primitives {
    pub(super) seed: Zeroizing<[u8; 32]>,
}

impl CryptoResolver for Primitives {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(Once { bytes: self.seed.clone(), used: 0 }))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        matches!(choice, DHChoice::Curve25519).then(|| Box::new(Curve::default()) as Box<dyn Dh>)
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        matches!(choice, HashChoice::SHA256).then(|| Box::new(Sha::new()) as Box<dyn Hash>)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        matches!(choice, CipherChoice::AESGCM).then(|| Box::new(Gcm::default()) as Box<dyn Cipher>)
    }
}

/// Overwrites a finished handshake, and what was learned in it, with one that has not begun.
pub(super) fn bury(finished: &mut HandshakeState, fresh: Option<HandshakeState>) {
    if let Some(fresh) = fresh {
        *finished = fresh;
    }
}

/// Thirty-two random bytes, for the one ephemeral key of a handshake; a second draw fails.
struct Once {
    bytes: Zeroizing<[u8; 32]>,
    used: usize,
}

impl Random for Once {
    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Error> {
        let drawn = self.bytes.get(self.used..self.used + out.len()).ok_or(Error::Rng)?;
        out.copy_from_slice(drawn);
        self.used += out.len();
        Ok(())
    }
}

fn base_multiply(private: &[u8; 32]) -> Option<[u8; 32]> {
    let private = PrivateKey::from_private_key(&X25519, private).ok()?;
    private.compute_public_key().ok()?.as_ref().try_into().ok()
}

/// X25519.
#[derive(Default)]
struct Curve {
    private: Zeroizing<[u8; 32]>,
    public: [u8; 32],
}

impl Curve {
    fn derive(&mut self) {
        #[cfg(fuzzing)]
        let public = crate::fuzz::product((*self.private, None), || base_multiply(&self.private));
        #[cfg(not(fuzzing))]
        let public = base_multiply(&self.private);
        if let Some(public) = public {
            self.public = public;
        }
    }
}

impl Dh for Curve {
    fn name(&self) -> &'static str {
        "25519"
    }

    fn pub_len(&self) -> usize {
        32
    }

    fn priv_len(&self) -> usize {
        32
    }

    fn set(&mut self, private: &[u8]) {
        self.private.copy_from_slice(private);
        self.derive();
    }

    fn generate(&mut self, rng: &mut dyn Random) -> Result<(), Error> {
        rng.try_fill_bytes(&mut self.private[..])?;
        self.derive();
        Ok(())
    }

    fn pubkey(&self) -> &[u8] {
        &self.public
    }

    fn privkey(&self) -> &[u8] {
        &self.private[..]
    }

    fn dh(&self, public: &[u8], out: &mut [u8]) -> Result<(), Error> {
        let public = public.first_chunk().ok_or(Error::Dh)?;
        let secret = shared(&self.private, public).ok_or(Error::Dh)?;
        out.get_mut(..32).ok_or(Error::Dh)?.copy_from_slice(&secret[..]);
        Ok(())
    }
}

/// AES-256-GCM as Noise uses it: a big-endian counter behind four zero bytes.
#[derive(Default)]
struct Gcm {
    key: Option<LessSafeKey>,
}

fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&counter.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

impl Cipher for Gcm {
    fn name(&self) -> &'static str {
        "AESGCM"
    }

    fn set(&mut self, key: &[u8; 32]) {
        self.key = UnboundKey::new(&AES_256_GCM, key).ok().map(LessSafeKey::new);
    }

    fn encrypt(&self, counter: u64, aad: &[u8], clear: &[u8], out: &mut [u8]) -> usize {
        out[..clear.len()].copy_from_slice(clear);
        let sealed = self.key.as_ref().map(|key| {
            let (body, rest) = out.split_at_mut(clear.len());
            let tag = key.seal_in_place_separate_tag(nonce(counter), Aad::from(aad), body);
            tag.map(|tag| rest[..tag.as_ref().len()].copy_from_slice(tag.as_ref()))
        });
        match sealed {
            Some(Ok(())) => clear.len() + 16,
            // `snow` sets a key before it encrypts, and its messages are short.
            None | Some(Err(_)) => unreachable!("a handshake message was not sealed"),
        }
    }

    fn decrypt(
        &self,
        counter: u64,
        aad: &[u8],
        sealed: &[u8],
        out: &mut [u8],
    ) -> Result<usize, Error> {
        let key = self.key.as_ref().ok_or(Error::Decrypt)?;
        let mut buffer = Zeroizing::new(sealed.to_vec());
        let clear = key
            .open_in_place(nonce(counter), Aad::from(aad), &mut buffer)
            .map_err(|_| Error::Decrypt)?;
        out.get_mut(..clear.len()).ok_or(Error::Decrypt)?.copy_from_slice(clear);
        Ok(clear.len())
    }
}

/// SHA-256.
struct Sha {
    context: digest::Context,
}

impl Sha {
    fn new() -> Self {
        Self { context: digest::Context::new(&digest::SHA256) }
    }
}

impl Hash for Sha {
    fn name(&self) -> &'static str {
        "SHA256"
    }

    fn block_len(&self) -> usize {
        64
    }

    fn hash_len(&self) -> usize {
        32
    }

    fn reset(&mut self) {
        self.context = digest::Context::new(&digest::SHA256);
    }

    fn input(&mut self, data: &[u8]) {
        self.context.update(data);
    }

    fn result(&mut self, out: &mut [u8]) {
        let fresh = digest::Context::new(&digest::SHA256);
        let done = std::mem::replace(&mut self.context, fresh).finish();
        out[..32].copy_from_slice(done.as_ref());
    }

    fn hmac(&mut self, key: &[u8], data: &[u8], out: &mut [u8]) {
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), data);
        out[..32].copy_from_slice(tag.as_ref());
    }

    /// As the trait does it, without leaving the steps behind.
    fn hkdf(
        &mut self,
        chaining_key: &[u8],
        input: &[u8],
        outputs: usize,
        out1: &mut [u8],
        out2: &mut [u8],
        out3: &mut [u8],
    ) {
        let mut temporary = Zeroizing::new([0; 32]);
        self.hmac(chaining_key, input, &mut temporary[..]);
        let mut block = Zeroizing::new([0; 33]);
        self.hmac(&temporary[..], &[1], out1);
        for (number, from, to) in [(2, &*out1, out2), (3, &[][..], out3)] {
            if outputs < usize::from(number) {
                break;
            }
            if number == 2 {
                block[..32].copy_from_slice(&from[..32]);
            }
            block[32] = number;
            self.hmac(&temporary[..], &block[..], to);
            block[..32].copy_from_slice(&to[..32]);
        }
        temporary.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use snow::resolvers::DefaultResolver;

    use super::*;

    fn ours() -> Primitives {
        Primitives { seed: Zeroizing::new([3; 32]) }
    }

    #[test]
    fn both_curves_agree() {
        let (mut a, mut b) = (
            ours().resolve_dh(&DHChoice::Curve25519).unwrap(),
            DefaultResolver.resolve_dh(&DHChoice::Curve25519).unwrap(),
        );
        for seed in 0..20 {
            a.set(&[seed; 32]);
            b.set(&[seed; 32]);
            assert_eq!(a.pubkey(), b.pubkey());
            let (mut one, mut two) = ([0; 32], [0; 32]);
            a.dh(&[seed + 9; 32], &mut one).unwrap();
            b.dh(&[seed + 9; 32], &mut two).unwrap();
            assert_eq!(one, two);
        }
        assert!(a.dh(&[0; 32], &mut [0; 32]).is_err(), "a point of small order");
        assert!(shared(&[1; 32], &[0; 32]).is_none());
    }

    #[test]
    fn both_hashes_and_ciphers_agree() {
        let mut ours_hash = ours().resolve_hash(&HashChoice::SHA256).unwrap();
        let mut theirs = DefaultResolver.resolve_hash(&HashChoice::SHA256).unwrap();
        for outputs in 1..=3 {
            let mut made = [[[0; 64]; 3]; 2];
            for (hash, [one, two, three]) in
                [&mut ours_hash, &mut theirs].into_iter().zip(&mut made)
            {
                hash.hkdf(&[1; 32], &[2; 32], outputs, one, two, three);
            }
            assert_eq!(made[0], made[1], "{outputs} outputs");
        }
        let mut ours_cipher = ours().resolve_cipher(&CipherChoice::AESGCM).unwrap();
        let mut theirs = DefaultResolver.resolve_cipher(&CipherChoice::AESGCM).unwrap();
        ours_cipher.set(&[7; 32]);
        theirs.set(&[7; 32]);
        let (mut one, mut two) = ([0; 21], [0; 21]);
        assert_eq!(ours_cipher.encrypt(9, b"aad", b"clear", &mut one), 21);
        assert_eq!(theirs.encrypt(9, b"aad", b"clear", &mut two), 21);
        assert_eq!(one, two);
        let mut clear = [0; 5];
        assert_eq!(ours_cipher.decrypt(9, b"aad", &two, &mut clear), Ok(5));
        assert_eq!(&clear, b"clear");
        assert!(ours_cipher.decrypt(9, b"aad", &two[..9], &mut clear).is_err());
        assert!(ours_cipher.decrypt(8, b"aad", &two, &mut clear).is_err());
    }
}
