import { describe, expect, it } from 'vitest';
import { encodePath, shown } from '../src/lib/paths';

describe('names that are not text', () => {
  it('go to the server as the bytes that they are', () => {
    expect(encodePath('dir\udcff/\udc80é.txt')).toBe('dir%FF/%80%C3%A9.txt');
  });
  it('never throw, whatever half of a pair they hold', () => {
    expect(encodePath('a\ud800b')).toBe('a%EF%BF%BDb');
    expect(encodePath('\udbff')).toBe('%EF%BF%BD');
  });
  it('leave whole pairs and the rest alone', () => {
    expect(encodePath('a b/😀#?%.txt')).toBe('a%20b/%F0%9F%98%80%23%3F%25.txt');
  });
  it('are shown without breaking the line or its direction', () => {
    expect(shown('a\nb\tc\x7f')).toBe('a↵b\ufffdc\ufffd');
    expect(shown('bad\udcff😀')).toBe('bad\ufffd😀');
    expect(shown('exe.\u202etxt')).toBe('exe.\ufffdtxt');
  });
});
