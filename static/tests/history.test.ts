import { describe, expect, it } from 'vitest';
import { applyUpdate, Doc, encodeStateAsUpdate, UndoManager } from 'yjs';
import type { Version } from '../src/api/types';
import { edits, rewrite } from '../src/lib/edits';
import { byDay, day, moment, names, renewed, textOf } from '../src/lib/history';

const applied = (from: string, to: string): string =>
  edits(from, to).reduce((text, e) => text.slice(0, e.at) + e.insert + text.slice(e.at + e.remove), from);

/** Numbers that look random and are the same in every run. */
function numbers(seed: number): () => number {
  let x = seed;
  return () => {
    x = (Math.imul(x, 1664525) + 1013904223) >>> 0;
    return x / 2 ** 32;
  };
}

describe('edits', () => {
  it('are few', () => {
    expect(edits('same', 'same')).toEqual([]);
    expect(edits('', 'new')).toEqual([{ at: 0, remove: 0, insert: 'new' }]);
    expect(edits('one\ntwo\nthree\n', 'one\n2\nthree\nfour\n')).toEqual([
      { at: 14, remove: 0, insert: 'four\n' },
      { at: 4, remove: 3, insert: '2' },
    ]);
  });

  it('never tear a surrogate pair, in texts of any kind', () => {
    const random = numbers(7);
    // halves in common: the first of 🎈 and 🎉, the second of 🎈 and 🐈 differ only in one unit
    const signs = ['a', 'b', '\n', '🎈', '🎉', '🐈', 'é', '\u{1F388}'];
    const some = (n: number): string => Array.from({ length: n }, () => signs[Math.floor(random() * signs.length)]!).join('');
    for (let i = 0; i < 3000; i += 1) {
      const from = some(random() * 12);
      const to = random() < 0.5 ? some(random() * 12) : from.replace(/🎈/u, '🎉') + some(random() * 3);
      expect(applied(from, to)).toBe(to);
      const doc = new Doc();
      const text = doc.getText('source');
      text.insert(0, from);
      rewrite(text, new UndoManager(text), to);
      expect(text.toString()).toBe(to);
    }
  });

  it('of long texts that have nothing in common take no time', () => {
    const random = numbers(3);
    const some = (): string => Array.from({ length: 200_000 }, () => String.fromCharCode(97 + random() * 26)).join('');
    const [from, to] = [some(), some()];
    const began = Date.now();
    expect(applied(from, to)).toBe(to);
    expect(Date.now() - began).toBeLessThan(5000);
  });
});

describe('rewrite', () => {
  it('is one step of undo, keeps what others wrote, and is taken back only while it is the last step', () => {
    const [ana, ben] = [new Doc(), new Doc()];
    const [mine, theirs] = [ana.getText('source'), ben.getText('source')];
    const exchange = (): void => {
      applyUpdate(ben, encodeStateAsUpdate(ana), 'wire');
      applyUpdate(ana, encodeStateAsUpdate(ben), 'wire');
    };
    mine.insert(0, 'one\ntwo\nthree\n');
    exchange();
    const undo = new UndoManager(mine);
    mine.insert(0, 'typed just now\n');
    // written meanwhile elsewhere, within a line that stays
    theirs.insert(3, ' and a half');
    const back = rewrite(mine, undo, 'zero\none\nthree\n')!;
    exchange();
    expect(mine.toString()).toBe('zero\none and a half\nthree\n');
    expect(theirs.toString()).toBe(mine.toString());
    expect(back()).toBe(true);
    expect(mine.toString()).toBe('typed just now\none and a half\ntwo\nthree\n');
    expect(back()).toBe(false);
    undo.undo();
    expect(mine.toString()).toBe('one and a half\ntwo\nthree\n');

    const again = rewrite(mine, undo, 'three\n')!;
    mine.insert(0, 'typed after it\n');
    expect(again()).toBe(false);
    undo.undo();
    undo.undo();
    expect(mine.toString()).toBe('one and a half\ntwo\nthree\n');
    expect(rewrite(mine, undo, mine.toString())).toBe(null);
  });
});

describe('history', () => {
  const encode = (text: string): Uint8Array => new TextEncoder().encode(text);
  const version = (seq: number, time = '2026-11-24T12:00:00Z'): Version => ({ seq, time, people: [], kind: 'changed', size: 1, checkpoint: null });

  it('reads bytes as the worker does', () => {
    expect(textOf(encode('a\r\nb\r\n'))).toBe('a\nb\n');
    expect(textOf(encode('a\r\nb\n'))).toBe('a\r\nb\n');
    expect(textOf(encode('a\rb\r\n'))).toBe('a\rb\r\n');
    expect(textOf(encode('\ufeffa'))).toBe('\ufeffa');
    expect(textOf(encode('a\0b'))).toBe(null);
    expect(textOf(new Uint8Array([0xff, 0x61]))).toBe(null);
    expect(textOf(new Uint8Array())).toBe('');
  });

  it('names people', () => {
    expect(names(['ana'])).toBe('ana');
    expect(names(['ana', 'ben', 'cyd'])).toBe('ana, ben and cyd');
    expect(names(['ana', 'ben', 'cyd', 'dan', 'eve'])).toBe('ana, ben and 3 others');
  });

  it('groups by day', () => {
    const now = new Date(2026, 10, 24, 9).getTime();
    const at = (...parts: [number, number, number, number, number]): number => new Date(...parts).getTime();
    expect(day(at(2026, 10, 24, 0, 0), now)).toBe('Today');
    expect(day(at(2026, 10, 23, 23, 59), now)).toBe('Yesterday');
    expect(day(at(2026, 10, 22, 12, 0), now)).toMatch(/22/);
    expect(day(at(2025, 10, 24, 12, 0), now)).toMatch(/2025/);
    const times = [at(2026, 10, 24, 8, 0), at(2026, 10, 24, 7, 0), at(2026, 10, 20, 7, 0)].map((t) => new Date(t).toISOString());
    expect(byDay(times.map((time, i) => version(9 - i, time)), now).map((d) => d.versions.map((v) => v.seq))).toEqual([[9, 8], [7]]);
    expect(moment(at(2026, 10, 24, 8, 5), now)).toMatch(/^at .*05/);
    expect(moment(at(2026, 10, 20, 8, 5), now)).toMatch(/^on .*20.* at .*05/);
  });

  it('renews its beginning', () => {
    const seqs = (all: Version[]): number[] => all.map((v) => v.seq);
    expect(seqs(renewed([version(5), version(3), version(1)], [version(7), version(3)]))).toEqual([7, 3, 1]);
    expect(seqs(renewed([], [version(2)]))).toEqual([2]);
    expect(renewed([version(2)], [])).toEqual([]);
  });
});
