/* Before the first paint: the theme that was chosen here, else the system's. */
(function () {
  var theme = null;
  try {
    theme = localStorage.getItem('codevo:theme');
  } catch (e) {
    theme = null;
  }
  var asked = new URLSearchParams(location.search).get('theme');
  if (location.pathname.indexOf('/embed/') === 0 && (asked === 'dark' || asked === 'light')) theme = asked;
  if (theme !== 'dark' && theme !== 'light')
    theme = matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light';
  document.documentElement.dataset.theme = theme;
})();
