import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { Backoff } from '../src/lib/backoff';
import { colorOf, initials } from '../src/lib/colors';
import { rank, score } from '../src/lib/fuzzy';
import { executeRequest, parse } from '../src/lib/jupyter';
import { nextActive, restore } from '../src/lib/layout';
import { byName, encodePath, extension, isInside, moved, nameProblem } from '../src/lib/paths';
import { ago, bytes, clock } from '../src/lib/time';
import { route, safeNext } from '../src/routes';

describe('Backoff', () => {
  it('doubles up to its bound and begins anew', () => {
    const backoff = new Backoff(100, 1000, () => 0);
    expect([1, 2, 3, 4, 5, 6].map(() => backoff.next())).toEqual([100, 200, 400, 800, 1000, 1000]);
    backoff.reset();
    expect(backoff.next()).toBe(100);
  });

  it('takes off a fifth at most, and stays finite', () => {
    const backoff = new Backoff(100, 1000, () => 1);
    expect(backoff.next()).toBe(80);
    for (let i = 0; i < 2000; i += 1) backoff.next();
    expect(backoff.next()).toBe(800);
  });
});

describe('paths', () => {
  it('encodes each segment', () => {
    expect(encodePath('a b/ü#?%/c')).toBe('a%20b/%C3%BC%23%3F%25/c');
  });

  it('knows what is inside what', () => {
    expect(isInside('src/a.py', 'src')).toBe(true);
    expect(isInside('srcs/a.py', 'src')).toBe(false);
    expect(isInside('anything', '')).toBe(true);
  });

  it('follows a move', () => {
    expect(moved('a/b/c', 'a', 'x/y')).toBe('x/y/b/c');
    expect(moved('ab', 'a', 'x')).toBeNull();
  });

  it('refuses names that climb out or break lines', () => {
    for (const bad of ['', ' ', '..', 'a/../b', '/a', 'a/', 'a//b', 'a\nb', 'x'.repeat(256)]) expect(nameProblem(bad)).not.toBeNull();
    for (const good of ['a.py', 'a b/ü.md', '...', '.env']) expect(nameProblem(good)).toBeNull();
  });

  it('finds extensions of names, not of hidden files or folders', () => {
    expect([extension('a.b/c'), extension('.gitignore'), extension('A.PY')]).toEqual(['', '', 'py']);
  });

  it('sorts folders first and numbers as numbers', () => {
    const entries = [
      { name: 'b10', type: 'file' },
      { name: 'b2', type: 'file' },
      { name: 'z', type: 'directory' },
    ];
    expect(entries.sort(byName).map((e) => e.name)).toEqual(['z', 'b2', 'b10']);
  });
});

describe('quick open', () => {
  it('prefers names over folders and refuses what does not fit', () => {
    expect(rank('app', ['apple/pie/x.py', 'src/app.py', 'README.md'])).toEqual(['src/app.py', 'apple/pie/x.py']);
    expect(score('zzz', 'app.py')).toBeNull();
  });
});

describe('colours of people', () => {
  it('are the same for a name, always', () => {
    expect(colorOf('ana')).toEqual(colorOf('ana'));
    expect(colorOf('ana').strong).toMatch(/^#[0-9a-f]{6}$/);
  });

  it('gives initials of any name', () => {
    expect([initials('ana'), initials('Ana María'), initials('🙂 x'), initials('')]).toEqual(['A', 'AM', '🙂X', '?']);
  });
});

describe('times and sizes', () => {
  it('are short', () => {
    expect(ago(0, 4000)).toBe('just now');
    expect(ago(0, 20_000)).toBe('20 s ago');
    expect(ago(0, 3_600_000 * 3)).toBe('3 h ago');
    expect(ago(10_000, 0)).toBe('just now');
    expect([clock(65_000), clock(3_661_000), clock(-5)]).toEqual(['1:05', '1:01:01', '0:00']);
    expect([bytes(12), bytes(1500), bytes(25_000_000)]).toEqual(['12 bytes', '1.5 kB', '25 MB']);
  });
});

describe('Jupyter frames', () => {
  it('asks for a run as a shell message', () => {
    const request = executeRequest('s');
    expect(request.channel).toBe('shell');
    expect(request.header).toMatchObject({ msg_type: 'execute_request', session: 's', version: '5.3' });
    expect(request.content).toMatchObject({ code: '', allow_stdin: true });
    expect(executeRequest('s').header.msg_id).not.toBe(request.header.msg_id);
  });

  it('takes what a kernel sends', () => {
    const back = parse(JSON.stringify(executeRequest('s')));
    expect(back?.header.msg_type).toBe('execute_request');
  });

  it('refuses what is no frame', () => {
    for (const bad of ['<html>', '1', 'null', '[]', '{}', '{"header":{"msg_type":1}}', new ArrayBuffer(2), '{"header":null}']) expect(parse(bad)).toBeNull();
    expect(parse('{"header":{"msg_type":"x","msg_id":"1"},"content":7}')?.content).toEqual({});
  });
});

describe('layout', () => {
  it('replaces what is broken', () => {
    const whole = { files: true, bottom: true, preview: false, tabs: [], active: null, panel: 'output' };
    for (const bad of [null, '', '{', '7', '[]', '{"tabs":"x","files":3}']) expect(restore(bad)).toEqual(whole);
  });

  it('keeps what is good', () => {
    expect(restore('{"files":false,"tabs":["a","a","",1,"b"],"active":"b"}')).toMatchObject({ files: false, tabs: ['a', 'b'], active: 'b' });
    expect(restore('{"tabs":["a"],"active":"gone"}').active).toBe('a');
    expect(restore('{"panel":"2"}').panel).toBe('2');
  });

  it('shows the neighbour of a closed tab', () => {
    expect(nextActive(['a', 'b', 'c'], 'b', 'b')).toBe('c');
    expect(nextActive(['a', 'b'], 'b', 'b')).toBe('a');
    expect(nextActive(['a'], 'a', 'a')).toBeNull();
    expect(nextActive(['a', 'b'], 'b', 'a')).toBe('a');
  });
});

describe('routes', () => {
  it('knows its pages', () => {
    expect(route('/projects/abcdefghijklmn23')).toEqual({ page: 'project', id: 'abcdefghijklmn23' });
    expect(route('/invite/Ab_-9')).toEqual({ page: 'invite', code: 'Ab_-9' });
    expect(route('/projects/../x').page).toBe('missing');
  });

  it('returns after login to this site only', () => {
    expect(safeNext('/invite/x?y=1')).toBe('/invite/x?y=1');
    for (const bad of [null, '', 'https://evil', '//evil', '/\t/evil/x', '/\n/evil', '/ /evil', '/\\evil', '\\\\evil', 'javascript:alert(1)']) expect(safeNext(bad)).toBe('/');
  });
});

describe('the lock file', () => {
  const lock = JSON.parse(readFileSync('package-lock.json', 'utf8')) as { packages: Record<string, { resolved?: string }> };

  it('holds exactly one of what may be there only once', () => {
    for (const name of ['yjs', '@codemirror/state', '@codemirror/view', 'y-protocols', 'lib0']) {
      const found = Object.keys(lock.packages).filter((p) => p.endsWith(`node_modules/${name}`));
      expect(found, name).toEqual([`node_modules/${name}`]);
    }
  });

  it('names no registry but the default one', () => {
    for (const [name, { resolved }] of Object.entries(lock.packages)) {
      if (resolved) expect(new URL(resolved).host, name).toBe('registry.npmjs.org');
    }
  });
});
