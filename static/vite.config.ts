import { svelte } from '@sveltejs/vite-plugin-svelte';
import { defineConfig } from 'vitest/config';

const hub = process.env['CODEVO_HUB'] ?? 'http://127.0.0.1:8000';

export default defineConfig({
  plugins: [svelte()],
  build: {
    target: 'es2022',
    assetsDir: 'assets',
    assetsInlineLimit: 0,
    // The pages' policy is `script-src 'self'`: nothing may be inlined into them.
    modulePreload: { polyfill: false },
    rollupOptions: {
      input: {
        index: 'index.html',
        admin: 'admin.html',
        embed: 'embed.html',
      },
    },
  },
  server: {
    proxy: {
      '/api': { target: hub, changeOrigin: true },
      '/p/': { target: hub, changeOrigin: true, ws: true },
    },
  },
  test: { include: ['tests/**/*.test.ts'] },
});
